"""The script's own kernels: sources over the resident kernel's headers, and their cubins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tilecompile.errors import InputError
from tilecompile.runtime.format import BLOCK, LEAST_SLOTS, SHARED_BYTES
from tilecompile.targets.cuda.build import build, check_resources
from tilecompile.targets.cuda.emit import GpuKind, bodies, front, once

HERE = Path(__file__).parent
SLOTS = (4096, 8192, 16384, 32768)
"""Bytes of a slot, of which the ring's speed is measured."""
STAGES = (2, 4, 6, 8, 12, 16, 24, 48)
"""Slots of a ring, likewise; what shared memory doesn't hold is left out."""


def entry(name: str, record: str, function: str) -> str:
    """A kernel that takes a record by value."""
    return (
        f'extern "C" __global__ void __launch_bounds__(tc::THREADS, 1) {name}(const __grid_constant__ '
        f"tc::{record} launch) {{\n  tc::{function}(launch);\n}}\n"
    )


def built(name: str, source: str, architecture: str, dynamic: int = 0, flags: tuple[str, ...] = ()) -> bytes:
    """The cubin of a source, none of whose kernels may spill. InputError names the kernel."""
    made = build(once(source), architecture, (), flags)
    for kernel, used in made.kernels.items():
        check_resources(f"{name}: {kernel}", used, dynamic)
    return made.cubin


def ring_shapes() -> list[tuple[int, int]]:
    """(bytes of a slot, slots) of the rings that are measured."""
    return [(slot, stages) for slot in SLOTS for stages in STAGES if shared_bytes(slot, stages) <= SHARED_BYTES]


def shared_bytes(slot: int, stages: int) -> int:
    """Shared memory of a block with such a ring."""
    return BLOCK.front_bytes + slot * stages


def stream_source(slot: int, stages: int) -> str:
    """Kernel `stream` with a ring of one shape."""
    shape = replace(BLOCK, slot_bytes=slot, shared_bytes=shared_bytes(slot, stages))
    parts = [front(shape), (HERE / "measure.cuh").read_text(), entry("stream", "StreamLaunch", "stream")]
    return "\n".join(parts)


def measure_source() -> str:
    """Kernels `plain_read`, `ping` and `fill`."""
    named = {"plain_read": "ReadLaunch", "ping": "PingLaunch", "fill": "FillLaunch"}
    entries = [entry(name, record, name) for name, record in named.items()]
    return "\n".join([front(BLOCK), (HERE / "measure.cuh").read_text(), *entries])


def tasks_source(
    kinds: Sequence[GpuKind], panels: Mapping[int, int], architecture: str, shared: int = SHARED_BYTES
) -> str:
    """Kernel `run_tasks` with the bodies of some kinds. InputError if they leave the ring no room."""
    made = bodies(list(kinds), panels, architecture)
    shape = replace(BLOCK, scratch_bytes=max(made.scratch.values(), default=0), shared_bytes=shared)
    if shape.slots < LEAST_SLOTS:
        raise InputError(f"run_tasks takes {shape.scratch_bytes} bytes of shared memory beside the ring")
    cases = "\n".join(f"      case {kind.index}: return {kind.function}(c);" for kind in kinds)
    choice = (
        "namespace tc {\nstruct Bodies {\n  TC_DEVICE static void run(uint32_t kind, const Call& c) {\n"
        f"    switch (kind) {{\n{cases}\n    }}\n  }}\n}};\n}}  // namespace tc\n"
    )
    parts = [front(shape), (HERE / "tasks.cuh").read_text(), made.source]
    return "\n".join([*parts, choice, entry("run_tasks", "TaskLaunch", "one_task<tc::Bodies>")])


def tasks_cubin(
    kinds: Sequence[GpuKind], panels: Mapping[int, int], architecture: str, shared: int = SHARED_BYTES
) -> bytes:
    """Its cubin."""
    return built("tasks", tasks_source(kinds, panels, architecture, shared), architecture, shared)


def stream_cubins(architecture: str, shapes: Sequence[tuple[int, int]]) -> dict[str, bytes]:
    """The cubins of `stream`, by name of their file, and of those that need no ring."""
    made = {
        f"stream-{slot}-{stages}.cubin": built(
            "stream", stream_source(slot, stages), architecture, shared_bytes(slot, stages)
        )
        for slot, stages in shapes
    }
    least = shared_bytes(BLOCK.slot_bytes, LEAST_SLOTS)
    return made | {"measure.cubin": built("measure", measure_source(), architecture, least)}
