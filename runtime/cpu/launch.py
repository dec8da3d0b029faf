"""Launching: the memory of an engine, the record that its kernel starts from, and a stall in words."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tilecompile.runtime.cpu.kernel import Kernel
from tilecompile.runtime.cpu.memory import Bytes, address, allocate, read_into, touch
from tilecompile.runtime.errors import EngineStalled
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.folder.tables import Tables, launched_streams
from tilecompile.runtime.format import ARENAS, LAUNCH, LOOP_INPUTS, LOOP_OUTPUTS, NONE, SAMPLING_INPUTS
from tilecompile.runtime.kernel import Resident
from tilecompile.runtime.machine import usable_cores

Memory = list[dict[str, Bytes]]
"""Arenas and weight pools, [device][arena]."""


EXTRA_ALIGN = 256


def extra_begin(arena: Mapping[str, int]) -> int:
    """Offset in a device's activation arena at which its extra bytes begin, where a launch has any."""
    return -(-int(arena["activation"]) // EXTRA_ALIGN) * EXTRA_ALIGN


def load_memory(manifest: Manifest) -> Memory:
    """Zeroed arenas, and the weight pools filled."""
    memory: Memory = []
    for arena, pool in zip(manifest.arenas, manifest.pools, strict=True):
        areas = {name: allocate(int(arena[name])) for name in ARENAS if name != "weight"}
        for area in areas.values():
            touch(area)
        areas["weight"] = allocate(int(pool["bytes"]))
        read_into(manifest.file(pool["file"]), areas["weight"], usable_cores())
        memory.append(areas)
    return memory


def clear(memory: Memory) -> None:
    """Zeroes the arenas, as they were at the first launch."""
    for areas in memory:
        for name in ("activation", "cache", "io"):
            areas[name][:] = 0


def launch_kernel(
    library: ctypes.CDLL,
    manifest: Manifest,
    tables: Tables,
    memory: Memory,
    threads: int,
    stall_ms: int,
    stops: Iterable[int] | None = None,
) -> Kernel:
    """Starts the kernel's threads. `stops` are the ids that end a request, by default the engine's."""
    data, buffers, programs = manifest.data, tables["buffers"], manifest.programs
    streams = launched_streams(manifest, tables)
    bases = np.array([[address(areas[name]) for name in ARENAS] for areas in memory], np.uint64)
    places = bases[buffers["device"], buffers["arena"]] + buffers["offset"]
    pools = bases[:, ARENAS.index("weight")].copy()
    ids = np.array([*sorted(set(manifest.eos_token_ids if stops is None else stops)), 0], np.int32)
    launch = np.zeros(1, LAUNCH.dtype)
    for name in ("instructions", "operands", "waits", "notifies", "tape", "events"):
        launch[name] = address(tables[name])
    rows = programs.rows.copy()
    for row, stated in zip(rows, data["programs"], strict=True):
        for name in LOOP_OUTPUTS:
            row[name] = places[stated["io"][name]]
    launch["streams"], launch["programs"] = address(streams), address(rows)
    launch["buffers"], launch["pools"], launch["stops"] = address(places), address(pools), address(ids)
    launch["stream_count"] = len(streams)
    launch["event_count"] = len(tables["events"])
    launch["program_count"], launch["first_program"] = len(programs.rows), programs.first
    launch["workers"], launch["threads"] = manifest.workers, threads
    launch["stop_count"] = len(ids) - 1
    launch["vocab"], launch["max_seq_len"] = manifest.vocab_size, manifest.max_seq_len
    for name in (*LOOP_INPUTS, *SAMPLING_INPUTS):
        launch[f"{name}_buffer"] = data["io"].get(name, NONE)
    launch["stall_ms"], launch["scratch_bytes"] = stall_ms, data["scratch_bytes"]
    return Kernel(library, launch, (memory, tables, streams, rows, places, pools, ids))


def stalled(manifest: Manifest, tables: Tables, kernel: Resident) -> EngineStalled:
    """The error for a kernel that waits for an event that doesn't come."""

    def word(names: list[Any], index: int) -> str:
        return str(names[index]) if index < len(names) else f"#{index}"

    after = "it is launched again at the next request"
    index, table = kernel.field("stall_instruction"), tables["instructions"]
    if index == NONE:
        return EngineStalled(f"{manifest.folder}: the kernel stalled: a step ended without its sink; {after}")
    task = f"instruction {index}"
    if index < len(table):
        record = table[index]
        kind = word(manifest.data["kinds"], int(record["kind"]))
        op = word(manifest.data["operators"], int(record["op"]))
        task = f"task {kind} of {op}, tile {tuple(int(i) for i in record['tile'])} (instruction {index})"
    worker, event, have, want = (kernel.field(f"stall_{name}") for name in ("worker", "event", "have", "want"))
    return EngineStalled(
        f"{manifest.folder}: the kernel stalled: worker {worker} waits before {task} for event {event}, "
        f"have {have}, want {want}; {after}"
    )
