"""From task kinds to an engine's kernel, for CPUs and GPUs: what `emit` and `build` are to both."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tilecompile.engine.dump import Dump
from tilecompile.errors import InputError
from tilecompile.ir.node import OpNode
from tilecompile.ir.tasks import TaskGrids
from tilecompile.ops.base import op_of
from tilecompile.options import Settings
from tilecompile.runtime.folder.manifest import CUBIN, KERNEL
from tilecompile.targets.cpu import emit
from tilecompile.targets.cpu.build import build
from tilecompile.targets.cuda import emit as cuda_emit
from tilecompile.targets.cuda.emit import GpuKind
from tilecompile.targets.cuda.kernel import make_kernel
from tilecompile.targets.kind import Kind

Label = TypeVar("Label", bound=Hashable)


@dataclass(frozen=True)
class Kinds(Generic[Label]):
    """Task kinds, and the kind of each node by its label."""

    kinds: Sequence[Kind]
    of_node: Mapping[Label, Kind]


def kinds_of(nodes: Mapping[Label, OpNode], settings: Settings, with_kernel: bool = True) -> Kinds[Label]:
    """The kinds of all nodes but the sinks; for GPUs their bodies too, where they are to make a kernel."""
    if settings.machine.is_cpu or not with_kernel:
        return Kinds(*emit.task_kinds(nodes))
    return Kinds(*cuda_emit.task_kinds(nodes))


def check_bodies(nodes: Iterable[OpNode], settings: Settings) -> None:
    """InputError if the target lacks bodies for some of the nodes."""
    missing = sorted({node.op for node in nodes if op_of(node).gpu is None and not op_of(node).is_sink})
    if missing and not settings.machine.is_cpu:
        raise InputError(
            f"the target {settings.target} has no bodies yet for {', '.join(missing)}; with --no-kernel the engine has "
            "everything else"
        )


def write_kernel(
    folder: Path,
    kinds: Kinds[tuple[str, str]],
    tiled: Iterable[TaskGrids],
    settings: Settings,
    name: str,
    terms: Mapping[str, Any],
    dump: Dump,
) -> dict[str, Any]:
    """Writes a model's kernel and its source to the engine's folder; returns what the manifest says of them.

    `terms` are what it is built for (`runtime/folder/contract.py`).
    """
    title = f"{name} for {settings.isa.name if settings.isa else settings.target}, {settings.workers} workers"
    if settings.isa is not None:
        source = dump.add("emit", emit.kernel_source(list(kinds.kinds), title, terms), "cpp")
        (folder / "kernel.cpp").write_text(source)
        build(folder / "kernel.cpp", folder / KERNEL, settings.isa)
        return {}
    gpu_kinds = [kind for kind in kinds.kinds if isinstance(kind, GpuKind)]
    panels = cuda_emit.largest_tiles(tiled, kinds.of_node)
    made = make_kernel(gpu_kinds, panels, settings.target, settings.machine.shared_memory_bytes, title, terms)
    dump.add("emit", made.source, "cu")
    (folder / "kernel.cu").write_text(made.source)
    (folder / CUBIN).write_bytes(made.cubin)
    return {"resources": made.resources}
