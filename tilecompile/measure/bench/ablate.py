"""What parts of the megakernel gain: variants of the kernel with the same bodies and without one of the parts.

- `barrier`: every operator waits for all tasks of the one before it, as if each were a kernel launch;
- `no prefetch`: no prefetch hint in bodies and loop (the CPU's own prefetchers go on);
- `no tapes`: the weights in the order of the checkpoint's tensors, not in the order in which the workers read them.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tilecompile.errors import EngineError, InputError
from tilecompile.measure.steps import another_kernel
from tilecompile.runtime.cpu.kernel import Kernel, open_kernel
from tilecompile.runtime.cpu.launch import Memory
from tilecompile.runtime.cpu.memory import Bytes, allocate
from tilecompile.runtime.engine import Engine
from tilecompile.runtime.folder.tables import Table, Tables
from tilecompile.runtime.format import ALIGN, ARENAS, NOTIFY, WAIT
from tilecompile.runtime.machine import free_memory
from tilecompile.runtime.progress import Progress
from tilecompile.targets.cpu.build import ISAS, build, find_compiler

BARRIER, NO_PREFETCH, NO_TAPES = "barrier", "no prefetch", "no tapes"

SOURCE = "kernel.cpp"
LIBRARY = "no-prefetch.so"


def check_ablation(engine: Engine) -> None:
    """InputError unless compiler and memory for all variants are there."""
    find_compiler()
    needed, free = sum(_layout(engine, device)[1] for device in range(engine.manifest.devices)), free_memory()
    if free is not None and needed > free:
        raise InputError(
            f"--ablate needs {needed} bytes for the weights in checkpoint order, the machine has {free} free"
        )


@contextmanager
def variants(engine: Engine, progress: Progress) -> Iterator[dict[str, Kernel]]:
    """Kernels of all variants by name, over the engine's memory. InputError as in `check_ablation`."""
    with ExitStack() as stack:
        progress("building without prefetch", 0, 1)
        library = stack.enter_context(without_prefetch(engine))
        progress("weights in checkpoint order", 0, 1)
        tables, memory = checkpoint_order(engine)
        yield {
            BARRIER: stack.enter_context(another_kernel(engine, tables=with_barriers(engine.tables))),
            NO_PREFETCH: stack.enter_context(another_kernel(engine, library=library)),
            NO_TAPES: stack.enter_context(another_kernel(engine, tables=tables, memory=memory)),
        }


def with_barriers(tables: Tables) -> Tables:
    """The tables with a barrier after every operator: its tasks wait for all tasks of the operator before, for nothing
    else, and notify one event.

    Operators are numbered in an order that respects their dependencies, and streams are brought into it.
    """
    instructions, streams = tables["instructions"].copy(), tables["streams"]
    events: list[tuple[int, ...]] = []
    waits: list[tuple[int, int]] = []
    notifies: list[tuple[int, int]] = []
    for program in np.unique(streams["program"]):
        mine = streams[streams["program"] == program]
        for stream in mine:
            part = instructions[stream["begin"] : stream["end"]]
            part[:] = part[np.argsort(part["op"], kind="stable")]
        rows = np.concatenate([np.arange(s["begin"], s["end"]) for s in mine])
        operators, tasks = np.unique(instructions["op"][rows], return_counts=True)
        number = np.searchsorted(operators, instructions["op"][rows])
        base, last = len(events), len(operators) - 1  # the last is the sink, which nothing waits for
        across = int(len(np.unique(mine["device"])) > 1)
        for i in range(last):
            events.append((program, mine["device"][0], tasks[i], i))
            waits.append((base + i, tasks[i]))
            notifies.append((base + i, across))
        instructions["wait_begin"][rows] = base + np.maximum(number - 1, 0)
        instructions["wait_count"][rows] = number > 0
        instructions["notify_begin"][rows] = base + np.minimum(number, last - 1)
        instructions["notify_count"][rows] = number < last
    return tables | {
        "instructions": instructions,
        "events": np.array(events, tables["events"].dtype),
        "waits": np.array(waits, WAIT.dtype),
        "notifies": np.array(notifies, NOTIFY.dtype),
    }


@contextmanager
def without_prefetch(engine: Engine) -> Iterator[ctypes.CDLL]:
    """The engine's kernel, built again with prefetch hints that do nothing. InputError without a C++ compiler."""
    isa = ISAS[engine.manifest.data["target"]["isa"]]
    with tempfile.TemporaryDirectory(prefix="tilecompile-ablate-") as folder:
        source = Path(shutil.copy(engine.manifest.file(SOURCE), folder))
        build(source, source.with_name(LIBRARY), isa, ("-DTC_NO_PREFETCH",))
        yield open_kernel(source.with_name(LIBRARY))


def checkpoint_order(engine: Engine) -> tuple[Tables, Memory]:
    """Tables and memory with a second weight pool, tensor after tensor by name and each from its first row to its last;
    of stacked experts, one expert after the other. All else is the engine's.

    A tile stays as it is: panels of 16 rows, where two matrices are read together those of both alternate.
    """
    check_ablation(engine)
    tables = {**engine.tables, "tape": engine.tables["tape"].copy(), "buffers": engine.tables["buffers"].copy()}
    tiles, memory = tables["tiles"], []
    moved, strides = tiles["offset"].copy(), np.zeros(len(tiles), np.uint64)
    for device in range(engine.manifest.devices):
        order, pool_bytes = _layout(engine, device)
        old, new = engine.cpu.memory[device]["weight"], allocate(pool_bytes)
        end = 0
        for group in order:
            copies, experts = int(tiles["copies"][group[0]]), int(tiles["bytes"][group].sum())
            at = end
            for t in group.tolist():
                moved[t], strides[t] = at, experts
                size_of = int(tiles["bytes"][t])
                _spread(new, at, experts, copies, size_of)[:] = _spread(
                    old, int(tiles["offset"][t]), size_of, copies, size_of
                )
                at += size_of
            end = _aligned(end + experts * copies)
        for b in _constants(tables, device):
            begin, length = int(tables["buffers"]["offset"][b]), int(tables["buffers"]["bytes"][b])
            new[end : end + length] = old[begin : begin + length]
            tables["buffers"]["offset"][b] = end
            end = _aligned(end + length + ALIGN)
        memory.append({**engine.cpu.memory[device], "weight": new})
    tape = tables["tape"]
    tape["offset"] = tape["offset"] - tiles["offset"][tape["tile"]] + moved[tape["tile"]]
    tape["stride"] = np.where(tape["stride"] > 0, strides[tape["tile"]], 0)
    return tables, memory


def _layout(engine: Engine, device: int) -> tuple[list[npt.NDArray[np.int64]], int]:
    """A device's tiles in checkpoint order, those of one tensor together, and the bytes of a pool for them."""
    tables, names = engine.tables, engine.manifest.data["weights"].get("tensors")
    if not isinstance(names, list) or len(names) != len(tables["weights"]):
        raise EngineError(f"{engine.manifest.path}: weights.tensors doesn't name the weights; compile the model again")
    tiles = tables["tiles"]
    groups: dict[int, list[int]] = {}
    for t in np.flatnonzero(tiles["device"] == device).tolist():
        groups.setdefault(int(tiles["tensor"][t]), []).append(t)
    order = []
    total = 0
    for tensor in sorted(groups, key=lambda i: _natural(str(names[i]))):
        group = np.array(groups[tensor])
        group = group[np.lexsort((tiles["row_begin"][group], tiles["begin"][group]))]
        order.append(group)
        total = _aligned(total + int((tiles["bytes"][group] * tiles["copies"][group]).sum()))
    for b in _constants(tables, device):
        total = _aligned(total + int(tables["buffers"]["bytes"][b]) + ALIGN)
    return order, total


def _constants(tables: Tables, device: int) -> list[int]:
    """A device's buffers that are in the weight pool."""
    buffers: Table = tables["buffers"]
    found = (buffers["device"] == device) & (buffers["arena"] == ARENAS.index("weight"))
    return [int(i) for i in np.flatnonzero(found)]


def _spread(area: Bytes, offset: int, stride: int, copies: int, length: int) -> Bytes:
    """View of `length` bytes at every `stride`-th byte from `offset` on, [copies, length]."""
    return np.lib.stride_tricks.as_strided(area[offset:], (copies, length), (stride, 1))


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts names by the numbers in them."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _aligned(offset: int) -> int:
    return -(-offset // ALIGN) * ALIGN
