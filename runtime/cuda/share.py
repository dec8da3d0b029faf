"""One device's share of an engine alone, with its exchanges looped back: for measurements on a single GPU.

What the device sends to others costs it what it would cost with them, and what it waits for comes once it has sent its
own part: an event that others would notify is notified by the device's own instruction of the same operator instead.
The numbers that it computes mean nothing.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from tilecompile.runtime.device_tables import owners
from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.format import COMMIT_KIND
from tilecompile.runtime.tables import Tables


def share_of(tables: Tables, device: int, devices: int) -> Tables:
    """The tables with the streams of one device; its waits count what that device notifies itself.

    EngineError if the device is not the one that has the sinks, or there is none of that number.
    """
    if not 0 <= device < devices:
        raise EngineError(f"share is device {device}, the engine has {devices}")
    out = {name: table.copy() for name, table in tables.items()}
    streams, instructions, events, notifies = (out[n] for n in ("streams", "instructions", "events", "notifies"))
    owner = np.zeros(len(instructions), np.int64)
    for row in streams:
        owner[int(row["begin"]) : int(row["end"])] = row["device"]
    sinks = np.unique(owner[instructions["kind"] == COMMIT_KIND])
    if sinks.tolist() != [device]:
        raise EngineError(f"share is device {device}, want {sinks.tolist()[0]}: the one that decides what comes next")
    notifier = owners(instructions, "notify")
    event_device = events["device"]
    target = notifies["event"].astype(np.int64)
    mine, here = owner[notifier] == device, event_device[target] == device
    # Events of this device that others notify, and what this device notifies elsewhere, by operator.
    coming: dict[int, set[int]] = defaultdict(set)
    for row in np.flatnonzero(~mine & here):
        coming[int(instructions["op"][notifier[row]])].add(int(target[row]))
    going: dict[int, set[int]] = defaultdict(set)
    for row in np.flatnonzero(mine & ~here):
        going[int(instructions["op"][notifier[row]])].add(int(target[row]))
    lands: dict[tuple[int, int], int] = {}
    for op, sent in going.items():
        to = sorted(coming.get(op, ()))
        for k, event in enumerate(sorted(sent)):
            if to:
                lands[op, event] = to[k % len(to)]
    for row in np.flatnonzero(mine & ~here):
        # Without a counterpart it stays what it was: the counters of other devices lie in memory of their own.
        notifies["event"][row] = lands.get((int(instructions["op"][notifier[row]]), int(target[row])), target[row])
    counts = np.bincount(notifies["event"][mine], minlength=len(events))
    local = np.flatnonzero(event_device == device)
    events["wait_count"][local] = counts[local]
    waits = out["waits"]
    waits["count"] = events["wait_count"][waits["event"]]
    out["streams"] = streams[streams["device"] == device]
    return out
