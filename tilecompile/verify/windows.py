"""verify, part: the order of a program's accesses, section by section, where equal windows of sections are proved once.

What is proved is the same as in `verify/order.py`, of the whole tables and for any tables. The argument:

Sections are cut so that no wait leads back (`verify/sections.py`). So what orders two instructions is a path through
their own sections and those between, a cycle is within one section, and running the sections one after the other is
running the program. The state in which a section begins is what each stream has seen of every stream, and so have the
events that are still to be awaited. It is kept as vector clocks that count from the beginning of the section before: a
clock of 0 or more says that all earlier sections of that stream are done, and what is less is forgotten, which may only
lose an order. So the clocks of a section are a function of its own instructions, waits and notifications and of the
state before it, and of nothing else: not of the numbers that instructions and events have.

A window is a section with the one before it. Each conflicting pair that has its later instruction in the section and
the other one in the window is compared by these clocks, with reads of scratch memory and the writes before them; that
depends on the two sections' regions and on which buffers they share. All this is what a window's key is made of: the
digests of the two sections, of the buffers that they share, and of the state. Two windows of equal keys differ in
numbers only, so what is proved of one holds for the other, and its state after it is the other's. Keys are computed
from the tables at hand, every time: that layers are copies of each other is found, not believed.

Pairs further apart than a window are compared one by one: the later instruction must have seen all of the section
that the earlier one is in, in its stream, or else a path between them is searched for. Reads of scratch memory that the
window's writes don't cover are compared with all earlier writes. Both are about the few buffers that are used over more
than two sections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np

from tilecompile.runtime import format as fmt
from tilecompile.verify.base import Bools, Ints, Subject, covered, overlaps
from tilecompile.verify.order import commit_count, late, race, unwritten
from tilecompile.verify.sections import Section, Sections, digest_of
from tilecompile.verify.window import Clocks, Window, prove_window

V = TypeVar("V")

KEPT = 256
"""Windows that are remembered."""


@dataclass
class Proved:
    """What is proved, to save it in later proofs: windows by their keys, and of the first tables all else.

    A check whose tables are the very same arrays holds still, so those arrays are made read-only; whoever changes
    tables changes copies. `sections` are those of the first tables, by program.
    """

    windows: dict[bytes, Window] = field(default_factory=dict)
    checks: dict[str, tuple[list[Any], Any]] = field(default_factory=dict)
    sections: dict[int, Sections] = field(default_factory=dict)

    def once(self, name: str, given: Sequence[Any], check: Callable[[], V]) -> V:
        """The result of a check, which is not run again where all that it is given is the same as the first time."""
        if name in self.checks:
            before, result = self.checks[name]
            if all(a is b for a, b in zip(before, given, strict=True)):
                return cast(V, result)
            return check()
        result = check()
        for array in given:
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
        self.checks[name] = list(given), result
        return result

    def add(self, key: bytes, window: Window) -> None:
        """Remembers a window, and forgets the one that was added longest ago where there are too many."""
        if len(self.windows) >= KEPT:
            del self.windows[next(iter(self.windows))]
        self.windows[key] = window


def check_windows(s: Subject, program: int, proved: Proved) -> int:
    """Proves the order of one step program whose thresholds are exact; returns the number of pairs that are ordered.

    Of pairs further apart than two sections, a region counts once.
    """
    return _Walk(s, program, proved).run()


class _Walk:
    """The sections of a program, one after the other."""

    def __init__(self, s: Subject, program: int, proved: Proved) -> None:
        self.s, self.program, self.proved = s, program, proved
        self.sections = Sections(s, program, proved.sections.get(program))
        self.unseen: dict[int, Bools] = {}
        self.open: list[tuple[int, int | None]] = []
        """Regions that a window left open, and the member that writes some of each later in the section, or None."""

    def run(self) -> int:
        sections, pairs = self.sections, 0
        commits = sections.members[self.s.t["instructions"]["kind"][sections.members] == fmt.COMMIT_KIND]
        commit_count(self.s, self.program, commits.tolist())
        state = np.zeros((sections.streams, sections.streams), np.int32)
        waiting: dict[int, tuple[Clocks, int]] = {}  # clocks of events, and the section that they are counted for
        known = digest_of(state)
        before: Section | None = None
        for k in range(sections.count):
            section = sections[k]
            entering = [self.counted_for(k, *waiting[e]) for e in section.events[section.enters].tolist()]
            clocks = np.stack(entering) if entering else np.zeros((0, sections.streams), np.int32)
            link = _link(section, before)
            digests = section.digest + (before.digest if before is not None else b"")
            key = digest_of(np.frombuffer(digests + known, np.uint8), link, self.gone(k, k - 1), clocks)
            window = self.proved.windows.get(key)
            if window is None:
                window = prove_window(self.s, section, before, link, self.counted_for(k, state, k - 1), clocks)
                self.proved.add(key, window)
            pairs += window.pairs
            for e, clock in zip(section.events[section.leaves].tolist(), window.events, strict=True):
                waiting[e] = (clock, k)
            self.unseen |= dict(zip(section.members[window.unseen].tolist(), window.seen, strict=True))
            first = int(sections.region_begin[sections.bounds[k]])
            self.open += [(first + r, int(section.members[w]) if w >= 0 else None) for r, w in window.open]
            if window.commit is not None:
                self.sink(int(commits[0]), k, window.commit)
            state, known, before = window.state, window.digest, section
        pairs += self.far()
        self.proved.sections.setdefault(self.program, sections)
        return pairs

    def counted_for(self, k: int, clocks: Clocks, old: int) -> Clocks:
        """Clocks that count for section `old`, for section k: from the beginning of the section before it."""
        return np.maximum(clocks - self.gone(k, old).astype(np.int32), -1)

    def gone(self, k: int, old: int) -> Ints:
        """Instructions of each stream between the places from which clocks count for two sections."""
        first = self.sections.first
        return np.asarray(first[max(k - 1, 0)] - first[max(old - 1, 0)])

    def sink(self, commit: int, k: int, clock: Clocks) -> None:
        """Checks that everything comes before the sink, which is in section k."""
        base, end = self.sections.first[max(k - 1, 0)], self.sections.first[-1]
        for number in np.flatnonzero(clock < end - base)[:1]:
            place = max(int(clock[number] + base[number]), 0)
            mine = np.flatnonzero((self.sections.stream == number) & (self.sections.place == place))
            raise late(self.s, int(self.sections.members[mine[0]]), commit)

    def far(self) -> int:
        """Checks pairs further apart than a window; returns the number of regions that were compared."""
        s, sections = self.s, self.sections
        regions = s.regions[sections.region_row]
        section = sections.section[sections.region_owner]
        buffer, write = regions["buffer"].astype(np.int64), regions["mode"] == fmt.WRITE
        touched, written = np.full((2, len(s.t["buffers"])), sections.count)
        np.minimum.at(touched, buffer, section)
        np.minimum.at(written, buffer[write], section[write])
        far = np.flatnonzero(np.where(write, touched[buffer], written[buffer]) <= section - 2)
        members = sections.members[sections.region_owner]
        unseen = far[np.isin(members[far], list(self.unseen))]
        near = np.flatnonzero(np.isin(buffer, np.unique(buffer[unseen])))
        for r in unseen.tolist():
            seen = self.unseen[int(members[r])]
            other = near[(buffer[near] == buffer[r]) & (section[near] <= section[r] - 2)]
            other = other[write[other] | write[r]]
            other = other[overlaps(regions[r : r + 1], regions[other])[0]]
            other = other[~seen[sections.stream[sections.region_owner[other]]]]
            if not len(other):
                continue
            before = sections.ancestors(int(sections.region_owner[r]), int(section[other].min()))
            for o in other[~before[sections.region_owner[other]]][:1].tolist():
                a, b = (r, o) if write[r] else (o, r)
                race(s, regions[a], int(members[a]), regions[b], int(members[b]))
        opened = np.array([r for r, _ in self.open], np.int64)
        wrote = np.flatnonzero(write & np.isin(buffer, np.unique(buffer[opened])))
        wrote = wrote[np.lexsort((section[wrote], buffer[wrote]))]
        places = buffer[wrote] * sections.count + section[wrote]
        bounds = [np.searchsorted(places, buffer[opened] * sections.count + n) for n in (0, section[opened])]
        proved: set[bytes] = set()
        for (r, after), begin, end in zip(self.open, *(x.tolist() for x in bounds), strict=True):
            earlier = wrote[begin:end]
            key = regions[r].tobytes() + end.to_bytes(8, "little")  # later sections see more of the writes
            if key not in proved and not covered(regions[r], regions[earlier]):
                before = sections.ancestors(int(sections.region_owner[r]), int(section[r]))
                inside = np.flatnonzero(write & (buffer == buffer[r]) & before[sections.region_owner])
                if not covered(regions[r], regions[np.concatenate([earlier, inside])]):
                    raise unwritten(s, regions[r], int(members[r]), after)
            proved.add(key)
        return len(far)


def _link(section: Section, before: Section | None) -> Ints:
    """Of each buffer of a section its number in the one before, or -1."""
    if before is None or not len(before.buffers):
        return np.full(len(section.buffers), -1)
    order = np.argsort(before.buffers)
    at = np.minimum(np.searchsorted(before.buffers[order], section.buffers), len(order) - 1)
    return np.where(before.buffers[order[at]] == section.buffers, order[at], -1)
