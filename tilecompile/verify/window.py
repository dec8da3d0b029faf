"""verify, part: the proof of one window, a section and the one before it (see `verify/windows.py`)."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime import format as fmt
from tilecompile.verify.base import ACTIVATION, Bools, Ints, Subject, overlaps, uncovered
from tilecompile.verify.order import deadlock, race
from tilecompile.verify.sections import Section, digest_of

Clocks = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Window:
    """What is proved of a window, in numbers of its section.

    `state` and `events` are the clocks of the streams after it and of the events that leave it (in their order),
    counted from the beginning of the section before. `unseen` has members whose clocks don't cover all before that, and
    `seen` the streams of which they do; `open` has regions that the window's writes don't cover, and a member that
    writes some of it later, or -1. `commit` is the clock of the sink, if it is here. `digest` is the hash of `state`.
    """

    state: Clocks
    events: Clocks
    unseen: Ints
    seen: Bools
    open: tuple[tuple[int, int], ...]
    commit: Clocks | None
    pairs: int
    digest: bytes


def prove_window(
    s: Subject, section: Section, before: Section | None, link: Ints, state: Clocks, entering: Clocks
) -> Window:
    """Proves a section, with the one before it, in a state: clocks of the streams, and of the events that enter it.

    `link` has the number of each of its buffers in the section before, or -1. Raises VerifyError.
    """
    return _Proof(s, section, before, link).run(state, entering)


class _Proof:
    def __init__(self, s: Subject, section: Section, before: Section | None, link: Ints) -> None:
        self.s, self.section, self.before, self.link = s, section, before, link
        offset = section.lengths * 0 if before is None else before.lengths
        self.place = offset[section.stream] + section.place
        """Of the members in their streams, from the beginning of the section before."""

    def run(self, state: Clocks, entering: Clocks) -> Window:
        section = self.section
        clocks, state, events = self.progress(state, entering)
        pairs, found = self.ordered(clocks)
        unseen = np.flatnonzero((clocks < 0).any(axis=1))
        commit = clocks[self.s.t["instructions"]["kind"][section.members] == fmt.COMMIT_KIND]
        leaving = [events[e] for e in np.flatnonzero(section.leaves).tolist()]
        out = np.stack(leaving) if leaving else entering[:0]
        sink = commit[0].copy() if len(commit) else None
        return Window(state, out, unseen, clocks[unseen] >= 0, tuple(found), sink, pairs, digest_of(state))

    def progress(self, state: Clocks, entering: Clocks) -> tuple[Clocks, Clocks, list[Any]]:
        """Runs the section abstractly: clocks of its members, of the streams after it, and of its events."""
        section = self.section
        ends = np.cumsum(section.lengths)
        at, last = (ends - section.lengths).tolist(), ends.tolist()
        done = (self.place + 1).tolist()
        awaited, notified = _lists(section.awaited, section.wait_ends), _lists(section.notified, section.notify_ends)
        events: list[Any] = [None] * len(section.events)
        for e, clock in zip(np.flatnonzero(section.enters).tolist(), entering, strict=True):
            events[e] = clock
        need = section.made.tolist()
        blocked: dict[int, list[int]] = defaultdict(list)
        clocks = np.zeros((len(section.members), len(at)), np.int32)
        current = list(state)
        ready = deque(np.flatnonzero(section.lengths).tolist())
        while ready:
            number = ready.popleft()
            clock = current[number]
            for i in range(at[number], last[number]):
                missing = next((e for e in awaited[i] if need[e]), None)
                if missing is not None:
                    blocked[missing].append(number)
                    break
                row = clocks[i]
                row[:] = clock
                for e in awaited[i]:
                    np.maximum(row, events[e], out=row)
                row[number] = done[i]
                clock = row
                at[number] = i + 1
                for e in notified[i]:
                    need[e] -= 1
                    events[e] = row if events[e] is None else np.maximum(events[e], row)
                    if not need[e]:
                        ready.extend(blocked.pop(e, ()))
            current[number] = clock
        stuck = [i for i, end in zip(at, last, strict=True) if i < end]
        if stuck:
            event = next(e for e in awaited[stuck[0]] if need[e])
            waiting = [i for begin, end in zip(at, last, strict=True) for i in range(begin, end)]
            maker = next(i for i in waiting if event in notified[i])
            real = int(section.events[event])
            want = int(self.s.t["events"]["wait_count"][real])
            raise deadlock(self.s, self.real(stuck[0]), real, want - need[event], want, self.real(maker))
        return clocks, np.stack(current), events

    def ordered(self, clocks: Clocks) -> tuple[int, list[tuple[int, int]]]:
        """Checks the window's conflicting pairs; returns their number, and reads that its writes don't cover."""
        section, before = self.section, self.before
        groups = _groups(section.region_buffer, len(section.buffers))
        earlier = _groups(before.region_buffer, len(before.buffers)) if before is not None else []
        scratch = self.s.t["buffers"]["arena"][section.buffers] == ACTIVATION
        pairs, found = 0, []
        for b, mine in enumerate(groups):
            regions, owner = section.regions[mine], section.region_owner[mine]
            write = regions["mode"] == fmt.WRITE
            writes, writer = regions[write], owner[write]
            conflict = overlaps(regions, writes) & (owner[:, None] != writer)
            after = clocks[owner[:, None], section.stream[writer]] > self.place[writer]
            if (conflict & ~after).any():
                first = (clocks[writer[:, None], section.stream[owner]] > self.place[owner]).T
                for i, j in np.argwhere(conflict & ~after & ~first)[:1]:
                    race(self.s, writes[j], self.real(writer[j]), regions[i], self.real(owner[i]))
            pairs += int(conflict[~write].sum()) + int(conflict[write].sum()) // 2
            known = conflict & after
            if self.link[b] >= 0 and before is not None:
                theirs = earlier[self.link[b]]
                wrote = before.regions["mode"][theirs] == fmt.WRITE
                past = self.across(clocks, mine, theirs[wrote])
                pairs += int(past.sum()) + int(self.across(clocks, mine[write], theirs[~wrote]).sum())
                known = np.concatenate([known, past], axis=1)
                writes = np.concatenate([writes, before.regions[theirs[wrote]]])
            if scratch[b]:
                found += self.open_reads(mine, known, writes, writer)
        return pairs, found

    def across(self, clocks: Clocks, mine: Ints, theirs: Ints) -> Bools:
        """Checks that regions come after those of the section before that they meet: bool [mine, theirs]."""
        before = self.before
        assert before is not None
        regions, owner = self.section.regions[mine], self.section.region_owner[mine]
        others, by = before.regions[theirs], before.region_owner[theirs]
        conflict = overlaps(regions, others)
        after = clocks[owner[:, None], before.stream[by]] > before.place[by]
        for i, j in np.argwhere(conflict & ~after)[:1]:
            a = (regions[i], self.real(owner[i]))
            b = (others[j], int(before.members[by[j]]))
            first, second = (a, b) if a[0]["mode"] == fmt.WRITE else (b, a)
            race(self.s, *first, *second)
        return conflict

    def open_reads(self, mine: Ints, known: Bools, writes: Any, writer: Ints) -> list[tuple[int, int]]:
        """Reads that the writes before (`known`) don't cover: the region, and a member that writes some of it, or -1.

        The first writes are those of the section, by `writer`. One of equal reads after the same writes stands for all.
        """
        regions, owner = self.section.regions[mine], self.section.region_owner[mine]
        reads = np.flatnonzero(regions["mode"] == fmt.READ)
        own, found = slice(0, len(writer)), []
        for i in reads[uncovered(regions[reads], writes, known[reads])].tolist():
            meets = overlaps(regions[i : i + 1], writes[own])[0] & ~known[i, own] & (writer != owner[i])
            found.append((int(mine[i]), int(writer[meets][0]) if meets.any() else -1))
        return found

    def real(self, member: Any) -> int:
        """The instruction that a member of the section is."""
        return int(self.section.members[member])


def _lists(rows: Ints, ends: Ints) -> list[list[int]]:
    """The rows of each member."""
    values, bounds = rows.tolist(), [0, *ends.tolist()]
    return [values[b:e] for b, e in pairwise(bounds)]


def _groups(buffer: Ints, count: int) -> list[Ints]:
    """The regions of each buffer."""
    order = np.argsort(buffer, kind="stable")
    return np.split(order, np.searchsorted(buffer[order], np.arange(1, count))) if count else []
