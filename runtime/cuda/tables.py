"""An engine's tables as a GPU's kernel takes them: with addresses instead of indices, so that it loads less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tilecompile.runtime import format as fmt
from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.folder.rows import entries, expanded, offsets, range_sums, referrers, span
from tilecompile.runtime.folder.tables import Table, Tables

Addresses = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DeviceTables:
    """The tables of one device: DeviceStream [programs · blocks], instructions, addresses, waits, notifies, runs.

    The streams of programs that aren't launched are empty, and nothing of theirs is in `runs`.
    """

    streams: Table
    instructions: Table
    operands: Addresses
    waits: Table
    notifies: Table
    runs: Table


def device_tables(
    tables: Tables,
    device: int,
    launched: Sequence[int],
    counters: Sequence[int],
    places: Addresses,
    pools: Sequence[int],
) -> DeviceTables:
    """The tables that the blocks of one device read.

    launched: numbers of the programs that are launched; counters: address of each device's counters, u32, one for each
    event; places: address of each buffer; pools: address of each device's weights; all as that device sees them.
    EngineError if the tables can't be run by a GPU's loop.
    """
    base = np.asarray(counters, np.uint64)
    events, waits, notifies = tables["events"], tables["waits"], tables["notifies"]
    address = base[events["device"]] + 4 * np.arange(len(events), dtype=np.uint64)
    remote = np.zeros(len(events), bool)
    remote[notifies["event"][notifies["scope"] != 0]] = True
    awaited = np.zeros(len(waits), fmt.DEVICE_WAIT.dtype)
    bit = np.where(remote, np.uint64(fmt.REMOTE), np.uint64(0))
    awaited["counter"] = address[waits["event"]] | bit[waits["event"]]
    awaited["event"], awaited["count"] = waits["event"], waits["count"]
    notified = np.zeros(len(notifies), fmt.DEVICE_NOTIFY.dtype)
    # Also for local producers: a counter has one scope.
    notified["counter"] = address[notifies["event"]] | bit[notifies["event"]]
    operands = places[tables["operands"]["buffer"]] + tables["operands"]["offset"]

    streams = tables["streams"]
    mine = streams[(streams["device"] == device) & (streams["agent"] == 0)]
    mine = mine[np.lexsort((mine["worker"], mine["program"]))]
    mine["end"] = np.where(np.isin(mine["program"], launched), mine["end"], mine["begin"])
    instructions = tables["instructions"].copy()
    conditional = np.zeros(len(instructions), bool)
    conditional[referrers(instructions, "tape")[tables["tape"]["slot"] >= 0]] = True
    conditional |= (instructions["flags"] & fmt.PREDICATED).astype(bool)
    conditional &= instructions["tape_count"] > 0
    instructions["flags"] |= np.where(conditional, fmt.CONDITIONAL, 0).astype(np.uint16)

    length = mine["end"].astype(np.int64) - mine["begin"]
    order = expanded(mine["begin"], length)
    rows, place = entries(instructions[order], "tape")
    owner = order[place]
    runs = _runs(tables, rows, owner, instructions, int(pools[device]))
    _experts(tables, runs, rows, owner, awaited_at=(address, remote), places=places, device=device)
    begin = offsets(instructions["tape_count"][order])
    first = offsets(length)
    out = np.zeros(len(mine), fmt.DEVICE_STREAM.dtype)
    out["begin"], out["end"] = mine["begin"], mine["end"]
    out["run_begin"], out["run_end"] = begin[first[:-1]], begin[first[1:]]
    for s in out:
        _hints(runs[s["run_begin"] : s["run_end"]], int(s["run_begin"]))
    return DeviceTables(out, instructions, operands, awaited, notified, runs)


def controller(tables: Tables) -> int:
    """The worker that has the sinks of all programs. EngineError if it is not one worker."""
    streams, commit = tables["streams"], tables["instructions"]["kind"] == fmt.COMMIT_KIND
    workers = np.unique(streams["worker"][range_sums(commit, streams["begin"], streams["end"]) > 0])
    if len(workers) != 1:
        raise EngineError(f"the sinks are on workers {workers.tolist()}, want one worker for all programs")
    return int(workers[0])


def _runs(tables: Tables, rows: Ints, owner: Ints, instructions: Table, pool: int) -> Table:
    tape = tables["tape"][rows]
    if (tape["bytes"] % 16).any() or (tape["bytes"] >> np.uint64(32)).any() or (tape["offset"] % 16).any():
        raise EngineError("a weight run isn't in units of 16 bytes, or has 4 GB or more")
    runs = np.zeros(len(rows), fmt.DEVICE_RUN.dtype)
    runs["source"] = np.uint64(pool) + tape["offset"]
    runs["stride"], runs["bytes"] = tape["stride"], tape["bytes"]
    runs["flags"] = instructions["flags"][owner]
    runs["instruction"] = owner
    return runs


def _experts(
    tables: Tables,
    runs: Table,
    rows: Ints,
    owner: Ints,
    awaited_at: tuple[Addresses, npt.NDArray[np.bool_]],
    places: Addresses,
    device: int,
) -> None:
    """Writes to gathered runs the address of their expert's number, and the event after which it is known.

    An instruction reads the expert of each slot from the first row of an i32 buffer, once.
    """
    address, remote = awaited_at
    slots = tables["tape"]["slot"][rows]
    gathered = np.flatnonzero(slots >= 0)
    if not len(gathered):
        return
    regions, buffers, events = (tables[name] for name in ("regions", "buffers", "events"))
    owner_of = referrers(tables["instructions"], "region")
    numbers = (regions["mode"] == fmt.READ) & (regions["row_begin"] == 0) & (regions["row_end"] == 1)
    numbers &= buffers["dtype"][regions["buffer"]] == fmt.DTYPES.index("i32")
    found: dict[int, list[int]] = {}
    for row in np.flatnonzero(numbers & np.isin(owner_of, owner[gathered])).tolist():
        found.setdefault(int(owner_of[row]), []).append(row)
    writes = np.flatnonzero(regions["mode"] == fmt.WRITE)
    writes = writes[np.argsort(regions["buffer"][writes], kind="stable")]
    written = regions["buffer"][writes].astype(np.int64)
    known, program_of = _Known(tables, device), _programs(tables)
    event_of: dict[tuple[int, int, int], int] = {}
    for i in gathered.tolist():
        slot = int(slots[i])
        mine = [r for r in found.get(int(owner[i]), ()) if regions["col_begin"][r] <= slot < regions["col_end"][r]]
        if len(mine) != 1:
            raise EngineError(f"instruction {owner[i]} doesn't read one number as the expert of its slot {slot}")
        buffer, program = int(regions["buffer"][mine[0]]), int(program_of[owner[i]])
        if (buffer, slot, program) not in event_of:
            those = writes[slice(*np.searchsorted(written, [buffer, buffer + 1]))]
            those = those[(regions["col_begin"][those] <= slot) & (regions["col_end"][those] > slot)]
            writers = np.unique(owner_of[those])
            event_of[buffer, slot, program] = known.after(writers[program_of[writers] == program], (buffer, slot))
        event = event_of[buffer, slot, program]
        runs["expert"][i] = places[buffer] + np.uint64(4 * slot)
        runs["event"][i], runs["count"][i] = event, events["wait_count"][event]
        runs["counter"][i] = address[event] | np.uint64(fmt.REMOTE if remote[event] else 0)


def _programs(tables: Tables) -> Ints:
    """The step program of each instruction that is in a stream."""
    found = np.zeros(len(tables["instructions"]), np.int64)
    for stream in tables["streams"]:
        found[stream["begin"] : stream["end"]] = stream["program"]
    return found


class _Known:
    """Finds events on a device after which instructions are done."""

    def __init__(self, tables: Tables, device: int) -> None:
        self.tables, self.device = tables, device
        self.order = np.argsort(tables["notifies"]["event"], kind="stable")
        self.sorted = tables["notifies"]["event"][self.order].astype(np.int64)
        self.owners = referrers(tables["instructions"], "notify")

    def after(self, writers: Ints, where: tuple[int, int]) -> int:
        """An event that all `writers` notify, and besides them only tasks of their operators.

        So it depends on nothing that may wait for the loader. EngineError if there is none.
        """
        instructions, notifies, events = (self.tables[n] for n in ("instructions", "notifies", "events"))
        common: set[int] | None = None
        for w in writers:
            mine = set(notifies["event"][span(instructions[w], "notify")].tolist())
            common = mine if common is None else common & mine
        ops = np.unique(instructions["op"][writers])
        for event in sorted(common or (), key=lambda e: (int(events["wait_count"][e]), e)):
            a, b = np.searchsorted(self.sorted, [event, event + 1])
            notifiers = instructions["op"][self.owners[self.order[a:b]]]
            if events["device"][event] == self.device and np.isin(notifiers, ops).all():
                return int(event)
        raise EngineError(
            f"no event on device {self.device} says when buffer {where[0]} has the expert of slot {where[1]}"
        )


def _hints(runs: Table, base: int) -> None:
    """Sets each run's `hint` to the next run of the stream that is not conditional."""
    plain = (runs["flags"] & fmt.CONDITIONAL) == 0
    place = np.where(plain, np.arange(len(runs)), len(runs))
    after = np.append(np.minimum.accumulate(place[::-1])[::-1][1:], len(runs)) if len(runs) else place
    runs["hint"] = np.where(after < len(runs), base + after, fmt.NONE)
