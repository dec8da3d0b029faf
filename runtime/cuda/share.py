"""One device's share of an engine alone, with its exchanges looped back: for measurements on a single GPU.

Sending to other devices costs what it would cost with them, and what the device waits for arrives once it has sent its
own part: an event that others would notify is notified by the device's own instruction of the same operator instead.
Where the device has no such operator, or its schedule has that one later, the event counts as arrived. The numbers that
it computes mean nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.folder.operators import Shared
from tilecompile.runtime.folder.rows import referrers
from tilecompile.runtime.folder.tables import Tables
from tilecompile.runtime.format import COMMIT_KIND


def share_of(tables: Tables, device: int, operators: Sequence[Shared]) -> Tables:
    """The tables with the streams of one device; its waits count what that device notifies itself.

    `operators` says of each operator what it shares with its counterparts on other devices (`Operator.shared`).
    EngineError if the device is not the one that has the sinks.
    """
    out = {name: table.copy() for name, table in tables.items()}
    streams, instructions, events, notifies = (out[n] for n in ("streams", "instructions", "events", "notifies"))
    owner = np.zeros(len(instructions), np.int64)
    for row in streams:
        owner[int(row["begin"]) : int(row["end"])] = row["device"]
    sinks = np.unique(owner[instructions["kind"] == COMMIT_KIND])
    if sinks.tolist() != [device]:
        raise EngineError(f"share is device {device}, want {sinks.tolist()[0]}: the one that decides what comes next")
    notifier = referrers(instructions, "notify")
    event_device = events["device"]
    target = notifies["event"].astype(np.int64)
    mine, here = owner[notifier] == device, event_device[target] == device
    shared = [operators[op] for op in instructions["op"].tolist()]
    # Events of this device that others notify, and what this device notifies elsewhere, by operator.
    coming: dict[Shared, set[int]] = defaultdict(set)
    for row in np.flatnonzero(~mine & here):
        coming[shared[notifier[row]]].add(int(target[row]))
    going: dict[Shared, set[int]] = defaultdict(set)
    for row in np.flatnonzero(mine & ~here):
        going[shared[notifier[row]]].add(int(target[row]))
    lands: dict[tuple[Shared, int], int] = {}
    for op, sent in going.items():
        to = sorted(coming.get(op, ()))
        for k, event in enumerate(sorted(sent)):
            if to:
                lands[op, event] = to[k % len(to)]
    for row in np.flatnonzero(mine & ~here):
        # Without a counterpart it stays what it was: the counters of other devices are in memory of their own.
        notifies["event"][row] = lands.get((shared[notifier[row]], int(target[row])), target[row])
    counts = np.bincount(notifies["event"][mine], minlength=len(events))
    local = np.flatnonzero(event_device == device)
    events["wait_count"][local] = counts[local]
    out["streams"] = streams[streams["device"] == device]
    arrived = _later(out, set(lands.values()))
    events["wait_count"][arrived] = 0
    waits = out["waits"]
    waits["count"] = events["wait_count"][waits["event"]]
    return out


def _later(tables: Tables, looped: set[int]) -> list[int]:
    """The events among `looped` that the streams' order would notify only behind an instruction that waits for them.

    EngineError if the streams can't run to their end without other events.
    """
    instructions, counts = tables["instructions"], tables["events"]["wait_count"].tolist()
    waits, notifies = tables["waits"]["event"].tolist(), tables["notifies"]["event"].tolist()
    spans = {
        name: (instructions[f"{name}_begin"].tolist(), instructions[f"{name}_count"].tolist())
        for name in ("wait", "notify")
    }
    at = [int(b) for b in tables["streams"]["begin"]]
    ends = [int(e) for e in tables["streams"]["end"]]
    have = [0] * len(counts)
    found: list[int] = []
    while True:
        moved = False
        missing: set[int] = set()
        for s in range(len(at)):
            while at[s] < ends[s]:
                begin, count = spans["wait"][0][at[s]], spans["wait"][1][at[s]]
                missed = [e for e in waits[begin : begin + count] if have[e] < counts[e]]
                if missed:
                    missing.update(missed)
                    break
                begin, count = spans["notify"][0][at[s]], spans["notify"][1][at[s]]
                for event in notifies[begin : begin + count]:
                    have[event] += 1
                at[s] += 1
                moved = True
        if at == ends:
            return found
        if not moved:
            late = sorted(missing & looped)
            if not late:
                raise EngineError(f"one device alone can't run: events {sorted(missing)[:5]} don't come")
            found += late
            for event in late:
                counts[event] = 0
