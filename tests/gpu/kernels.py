"""The script's own kernels: sources over the resident kernel's headers, and their cubins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tilecompile.errors import InputError
from tilecompile.targets.cuda.build import SHARED_BYTES, build, check_resources
from tilecompile.targets.cuda.emit import FRONT, GpuKind, bodies, front, once

HERE = Path(__file__).parent
FRONT_BYTES = 2048
"""Shared memory before bodies' own: see call.cuh."""

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
    return [(slot, stages) for slot in SLOTS for stages in STAGES if FRONT_BYTES + slot * stages <= SHARED_BYTES]


def shared_bytes(slot: int, stages: int) -> int:
    """Shared memory of a block with such a ring."""
    return FRONT_BYTES + slot * stages


def stream_source(slot: int, stages: int) -> str:
    """Kernel `stream` with a ring of one shape."""
    head = f"#define TC_SLOT_BYTES {slot}\n#define TC_SHARED_BYTES {shared_bytes(slot, stages)}\n"
    parts = [head, front(0, FRONT), (HERE / "measure.cuh").read_text(), entry("stream", "StreamLaunch", "stream")]
    return "\n".join(parts)


def measure_source() -> str:
    """Kernels `plain_read`, `ping` and `fill`."""
    named = {"plain_read": "ReadLaunch", "ping": "PingLaunch", "fill": "FillLaunch"}
    entries = [entry(name, record, name) for name, record in named.items()]
    return "\n".join([front(0, FRONT), (HERE / "measure.cuh").read_text(), *entries])


def tasks_source(
    kinds: Sequence[GpuKind], panels: Mapping[int, int], architecture: str, shared: int = SHARED_BYTES
) -> str:
    """Kernel `run_tasks` with the bodies of some kinds. InputError if they leave the ring no room."""
    made = bodies(list(kinds), panels, architecture)
    most = max(made.scratch.values(), default=0)
    if most > shared - FRONT_BYTES - 2 * 16384:
        raise InputError(f"run_tasks takes {most} bytes of shared memory beside the ring")
    cases = "\n".join(f"      case {kind.index}: return {kind.function}(c);" for kind in kinds)
    choice = (
        "namespace tc {\nstruct Bodies {\n  TC_DEVICE static void run(uint32_t kind, const Call& c) {\n"
        f"    switch (kind) {{\n{cases}\n    }}\n  }}\n}};\n}}  // namespace tc\n"
    )
    parts = [f"#define TC_SHARED_BYTES {shared}", front(most, FRONT), (HERE / "tasks.cuh").read_text(), made.source]
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
    return made | {"measure.cubin": built("measure", measure_source(), architecture, FRONT_BYTES + 2 * 16384)}
