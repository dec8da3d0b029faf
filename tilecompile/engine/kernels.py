"""Writes an engine's kernel: the stages `emit` and `build`, for CPUs and GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tilecompile.engine.plan import Plan
from tilecompile.engine.stages import Stages
from tilecompile.options import Settings
from tilecompile.runtime.folder.manifest import CUBIN, KERNEL
from tilecompile.targets.cpu import emit
from tilecompile.targets.cpu.build import build
from tilecompile.targets.cuda import emit as cuda_emit
from tilecompile.targets.cuda.emit import GpuKind
from tilecompile.targets.cuda.kernel import make_kernel


def write_kernel(
    folder: Path, plan: Plan, settings: Settings, name: str, terms: Mapping[str, Any], stages: Stages
) -> dict[str, Any]:
    """Writes the kernel of a model called `name`, and its source, to the engine's folder.

    `terms` are what it is built for (`runtime/folder/contract.py`). Returns what the manifest says of the kernel.
    """
    title = f"{name} for {settings.isa.name if settings.isa else settings.target}, {settings.workers} workers"
    if settings.isa is not None:
        source = stages.run("emit", emit.kernel_source, list(plan.kinds.kinds), title, terms)
        (folder / "kernel.cpp").write_text(source)
        stages.run("build", build, folder / "kernel.cpp", folder / KERNEL, settings.isa)
        return {}
    kinds = [kind for kind in plan.kinds.kinds if isinstance(kind, GpuKind)]
    panels = cuda_emit.largest_tiles(plan.tiled, plan.kinds.of_node)
    shared = settings.machine.shared_memory_bytes
    made = stages.run("emit_cuda", make_kernel, kinds, panels, settings.target, shared, title, terms)
    (folder / "kernel.cu").write_text(made.source)
    (folder / CUBIN).write_bytes(made.cubin)
    return {"resources": made.resources}
