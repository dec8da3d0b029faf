"""verify, part: divides a step program into sections (about a layer each), in a form in which equal ones compare equal.

A section takes a run of each stream, and no wait leads back: whatever an instruction waits for is in its own section or
an earlier one. The layers of the operators are only a hint where to cut; an instruction that waits for something that
the hint puts later is moved there, with what follows it in its stream. So any hint gives valid sections.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np

from tilecompile.runtime import format as fmt
from tilecompile.runtime.folder.rows import SPANS, entries, expanded, offsets, owners, sums
from tilecompile.verify.base import ACTIVATION, Bools, Ints, Subject, Tables


@dataclass(frozen=True)
class Section:
    """One section of a program.

    `members` are its instructions, by stream and place; `lengths` is how many each stream has. Events and buffers are
    numbered by their first use here, and `events`, `buffers` say which they are; `awaited` and `notified` are the
    members' events, `wait_ends` and `notify_ends` where each member's end. `made` counts an event's notifications in
    this section, `enters` says that there were some before and are waits from here on, `leaves` that waits follow.
    `regions` (of the subject) are those of the members that touch something, `region_owner` and `region_buffer` their
    members and buffers, numbered here. `digest` is the same for sections that differ in the numbers of instructions,
    events and buffers only.
    """

    members: Ints
    stream: Ints
    place: Ints
    lengths: Ints
    events: Ints
    awaited: Ints
    wait_ends: Ints
    notified: Ints
    notify_ends: Ints
    made: Ints
    enters: Bools
    leaves: Bools
    regions: Any
    region_owner: Ints
    region_buffer: Ints
    buffers: Ints
    digest: bytes


class Sections:
    """The sections of a program. `section` is each member's, for `order`, the members by section, stream and place."""

    def __init__(self, s: Subject, program: int, old: Sections | None = None) -> None:
        self.s, self.old = s, old
        self.made: dict[int, Section] = {}
        streams = np.flatnonzero(s.t["streams"]["program"] == program)
        self.streams = len(streams)
        begin, end = (s.t["streams"][f][streams].astype(np.int64) for f in ("begin", "end"))
        count = end - begin
        members, stream, place = expanded(begin, count), owners(count), expanded(0, count)
        self.waits, self.notifies = _Rows(s, members, "wait"), _Rows(s, members, "notify")
        ops, op = np.unique(s.t["instructions"]["op"][members], return_inverse=True)
        section = np.unique(self._cut(hints(s, ops.astype(np.int64))[op], stream), return_inverse=True)[1]
        order = np.argsort(section * self.streams + stream, kind="stable")
        self.section, self.members, self.stream, self.place = (x[order] for x in (section, members, stream, place))
        self.count = int(section.max(initial=0)) + 1
        self.waits, self.notifies = _Rows(s, self.members, "wait"), _Rows(s, self.members, "notify")
        self._regions()
        self.first = np.full((self.count + 1, self.streams), 0, np.int64)  # of each section, places in the streams
        np.add.at(self.first[1:], (self.section, self.stream), 1)
        np.cumsum(self.first, axis=0, out=self.first)
        total = len(s.t["events"])
        self.first_made, self.last_awaited = np.full(total, self.count), np.full(total, -1)
        np.minimum.at(self.first_made, self.notifies.event, self.section[self.notifies.owner])
        np.maximum.at(self.last_awaited, self.waits.event, self.section[self.waits.owner])
        self.bounds = np.searchsorted(self.section, np.arange(self.count + 1))
        self.changed = None if old is None else changed(s.t, old.s.t)[self.members]

    def _cut(self, hint: Ints, stream: Ints) -> Ints:
        """The section of each instruction: at least the hint, that of the one before it and of those that it awaits."""
        top = int(hint.max(initial=0)) + 1
        section = np.maximum.accumulate(hint + stream * top) - stream * top
        latest = np.zeros(len(self.s.t["events"]), np.int64)
        while True:
            np.maximum.at(latest, self.notifies.event, section[self.notifies.owner])
            moved = section.copy()
            np.maximum.at(moved, self.waits.owner, latest[self.waits.event])
            moved = np.maximum.accumulate(moved + stream * top) - stream * top
            if (moved == section).all():
                return section
            section = moved

    def _regions(self) -> None:
        """The regions of the members that touch something, in the order of the members."""
        s = self.s
        count = np.bincount(s.owner, minlength=len(s.t["instructions"]))
        begin = offsets(count)  # regions of the subject are in the order of the instructions
        n = count[self.members]
        self.region_row, self.region_owner = expanded(begin[self.members], n), owners(n)
        self.region_begin = offsets(n)

    @cached_property
    def _makers(self) -> tuple[Ints, Ints]:
        """The members that notify each event, one event after the other, and where each event's begin."""
        order = np.argsort(self.notifies.event, kind="stable")
        bounds = np.searchsorted(self.notifies.event[order], np.arange(len(self.s.t["events"]) + 1))
        return self.notifies.owner[order], bounds

    @cached_property
    def _previous(self) -> Ints:
        """The member before each one in its stream, or -1."""
        at = np.lexsort((self.place, self.stream))
        out = np.full(len(at), -1)
        out[at[1:]] = np.where(self.stream[at[1:]] == self.stream[at[:-1]], at[:-1], -1)
        return out

    def ancestors(self, later: int, least: int) -> Bools:
        """The members from section `least` on that come before a member: those that a path leads from."""
        makers, bounds = self._makers
        found = np.zeros(len(self.members), bool)
        events: set[int] = set()
        found[later], left = True, [later]
        while left:
            member = left.pop()
            near = [int(self._previous[member])]
            for e in self.waits.event[self.waits.of(member, member + 1)].tolist():
                if e not in events:
                    events.add(e)
                    near += makers[bounds[e] : bounds[e + 1]].tolist()
            for i in near:
                if i >= 0 and not found[i] and self.section[i] >= least:
                    found[i] = True
                    left.append(i)
        found[later] = False
        return found

    def __getitem__(self, k: int) -> Section:
        if k not in self.made:
            self.made[k] = self._kept(k) or self._section(k)
        return self.made[k]

    def _kept(self, k: int) -> Section | None:
        """The section of the old tables, if neither it nor its events have changed."""
        if self.old is None or self.changed is None or k not in self.old.made:
            return None
        lo, hi = self.bounds[k : k + 2]
        found = self.old.made[k]
        same = not self.changed[lo:hi].any() and np.array_equal(self.members[lo:hi], found.members)
        same = same and np.array_equal(self.stream[lo:hi], found.stream)
        same = same and np.array_equal(self.first[k + 1] - self.first[k], found.lengths)
        enters, leaves = self._passing(found.events, k)
        return found if same and bool((enters == found.enters).all() and (leaves == found.leaves).all()) else None

    def _passing(self, events: Ints, k: int) -> tuple[Bools, Bools]:
        """bool [events] twice: a wait in section k or later follows notifications before k; some wait follows k."""
        last = self.last_awaited[events]
        return (self.first_made[events] < k) & (last >= k), last > k

    def _section(self, k: int) -> Section:
        s, (lo, hi) = self.s, self.bounds[k : k + 2]
        w, n = self.waits.of(lo, hi), self.notifies.of(lo, hi)
        events, number = _numbered(np.concatenate([self.waits.event[w], self.notifies.event[n]]))
        awaited, notified = np.split(number, [w.stop - w.start])
        first, last = self.region_begin[[lo, hi]].tolist()
        regions = s.regions[self.region_row[first:last]]
        buffers, buffer = _numbered(regions["buffer"].astype(np.int64))
        made = np.bincount(notified, minlength=len(events))
        enters, leaves = self._passing(events, k)
        lengths = self.first[k + 1] - self.first[k]
        wait_ends, notify_ends = (
            found.begin[lo + 1 : hi + 1] - of.start for found, of in ((self.waits, w), (self.notifies, n))
        )
        commit = s.t["instructions"]["kind"][self.members[lo:hi]] == fmt.COMMIT_KIND
        boxes = [regions[f] for f in ("mode", "row_begin", "row_end", "col_begin", "col_end")]
        scratch = s.t["buffers"]["arena"][buffers] == ACTIVATION
        content = (lengths, commit, awaited, wait_ends, notified, notify_ends, enters, leaves, buffer, scratch, *boxes)
        owner = self.region_owner[first:last] - lo
        digest = digest_of(*content, owner)
        place = self.place[lo:hi] - self.first[k][self.stream[lo:hi]]
        found = (self.members[lo:hi], self.stream[lo:hi], place, lengths, events, awaited, wait_ends, notified)
        return Section(*found, notify_ends, made, enters, leaves, regions, owner, buffer, buffers, digest)


class _Rows:
    """The events that instructions refer to: `event`, `owner` (a place in `members`), `begin` of each member's rows.

    `begin` has one more place than there are members, for the end of the last one's.
    """

    def __init__(self, s: Subject, members: Ints, field: str) -> None:
        ins = s.t["instructions"][members]
        rows, self.owner = entries(ins, field)
        self.event = s.t[SPANS[field]]["event"][rows].astype(np.int64)
        self.begin = offsets(ins[f"{field}_count"])

    def of(self, lo: int, hi: int) -> slice:
        """The rows of members lo:hi."""
        return slice(*self.begin[[lo, hi]].tolist())


def hints(s: Subject, ops: Ints) -> Ints:
    """A section for each operator of a program, in their order, by its layer, which rises.

    One without a layer goes with those before it, or in a section of its own after all that have one.
    """
    layers = [s.names.layers[op] if op < len(s.names.layers) else None for op in ops.tolist()]
    found = np.array([0 if layer is None else layer + 1 for layer in layers], np.int64)
    named = np.flatnonzero(found)
    out = np.maximum.accumulate(found)
    if len(named):
        out[named[-1] + 1 :] += 1
    return out


def changed(new: Tables, old: Tables) -> Bools:
    """The instructions that differ in what sections are made of, themselves or in their rows; all, if sizes differ."""
    names = ("instructions", "waits", "notifies", "regions", "buffers")
    total = len(new["instructions"])
    if (
        any(len(new[name]) != len(old[name]) for name in names)
        or (new["buffers"]["arena"] != old["buffers"]["arena"]).any()
    ):
        return np.ones(total, bool)
    out = _different(new["instructions"], old["instructions"])
    for field, name in (("wait", "waits"), ("notify", "notifies"), ("region", "regions")):
        if new[name] is not old[name]:
            out |= sums(_different(new[name], old[name]), new["instructions"], field) > 0
    return out


def _different(new: Any, old: Any) -> Bools:
    if new is old:
        return np.zeros(len(new), bool)
    words = [np.ascontiguousarray(table).view(np.uint64).reshape(len(table), -1) for table in (new, old)]
    return np.asarray((words[0] != words[1]).any(axis=1))


def digest_of(*arrays: Any) -> bytes:
    """A hash of arrays, their types and lengths."""
    found = blake2b(digest_size=16)
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape};".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.digest()


def _numbered(values: Ints) -> tuple[Ints, Ints]:
    """The distinct values in the order in which they come first, and of each value its number among them."""
    distinct, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    return distinct[order], number[inverse.reshape(-1)]
