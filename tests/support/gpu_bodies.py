"""TileLang bodies as C, run by the same harness as the CPU bodies (`opharness.py`): same calls, tasks and memory."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

from support import opharness
from support.c_bodies import to_c
from tilecompile.ir.node import OpNode
from tilecompile.ops.base import REGISTRY
from tilecompile.ops.kit.body import TileBody
from tilecompile.runtime.format import BLOCK, c_header
from tilecompile.targets.cpu.build import find_compiler
from tilecompile.targets.cpu.emit import FRONT, KIT
from tilecompile.targets.cuda import emit
from tilecompile.targets.cuda.lower import to_cuda
from tilecompile.targets.kind import Kind

FLAGS = ("-std=c++20", "-O1", "-fPIC", "-shared", "-fno-strict-aliasing", "-ffp-contract=off", "-w")
"""TileLang's C reads the bits of floats through pointers."""

GPU_OPS = [name for name in opharness.OPS if REGISTRY[name].gpu]
"""Ops that have a body for GPUs."""

BY_HAND = ("linear", "head_linear", "expert_linear", "expert_combine", "sample")
"""Those whose bodies are written by hand: all but the last stream weights."""

TILE_OPS = [name for name in GPU_OPS if name not in BY_HAND]
"""Those whose bodies are written in TileLang."""


def tile_body(node: OpNode) -> TileBody:
    """The node's body, which is one in TileLang."""
    gpu = REGISTRY[node.op].gpu
    assert gpu is not None, f"{node.op} has no GPU body"
    body = gpu(node)
    assert isinstance(body, TileBody)
    return body


def build_c_bodies(nodes: list[OpNode]) -> tuple[ctypes.CDLL, dict[str, Kind]]:
    """A shared object with the nodes' TileLang bodies (names must differ), as `opharness.build_bodies` makes it."""
    functions: dict[str, int] = {}
    kinds: dict[tuple[int, str], Kind] = {}
    of_node = {}
    for node in nodes:
        body = tile_body(node)
        lowered = to_c(body)
        number = functions.setdefault(lowered.source, len(functions))
        statement = lowered.call(f"body{number}", body.args)
        key = (number, statement)
        kinds.setdefault(key, Kind(len(kinds) + 1, node.op, node.name, "", statement))
        of_node[node.name] = kinds[key]
    parts = [c_header(), *((KIT / name).read_text() for name in FRONT)]
    parts += [source.replace("@NAME@", f"body{number}") for source, number in functions.items()]
    parts += [f"static void {k.function}(const Call& c) {{\n  {k.statement}\n}}" for k in kinds.values()]
    table = ", ".join(["nullptr", *(kind.function for kind in kinds.values())])
    parts += [f"using Body = void (*)(const Call&);\nstatic const Body BODIES[] = {{{table}}};\n", opharness.SHIM]
    with tempfile.TemporaryDirectory(prefix="tilecompile-test-") as folder:
        path = Path(folder, "bodies.cpp")
        path.write_text("\n".join(parts).replace("#pragma once\n", ""))
        done = subprocess.run(
            [find_compiler(), *FLAGS, "-o", str(path.with_suffix(".so")), str(path)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[:4000]
        library = ctypes.CDLL(str(path.with_suffix(".so")))
    library.run.restype = ctypes.c_void_p
    return library, of_node


def kernels_source(nodes: list[OpNode], architecture: str) -> str:
    """CUDA source with a kernel a node, which calls its body as the resident loop does."""
    lowered = [(body, to_cuda(body, architecture)) for body in map(tile_body, nodes)]
    scratch = max(function.shared_bytes for _, function in lowered)
    parts = [emit.front(replace(BLOCK, scratch_bytes=scratch)), "using namespace tc;"]
    for number, (body, function) in enumerate(lowered):
        name = f"body{number}"
        parts.append(function.function(name))
        parts.append(
            f'extern "C" __global__ void __launch_bounds__({BLOCK.threads}, 1) kernel{number}(Call* call) {{\n'
            f"  const Call& c = *call;\n  if (threadIdx.x >= {BLOCK.body_threads}) return;\n"
            f"  {function.call(name, body.args)}\n}}\n"
        )
    return emit.once("\n".join(parts))


def front_and_kernels(kinds: list[emit.GpuKind], architecture: str) -> str:
    """CUDA source with a kernel a kind, also of those that are written by hand; none has weights."""
    made = emit.bodies(kinds, {}, architecture)
    parts = [emit.front(replace(BLOCK, scratch_bytes=max(made.scratch.values()))), made.source]
    for kind in kinds:
        parts.append(
            f'extern "C" __global__ void __launch_bounds__({BLOCK.threads}, 1)\n'
            f"kernel_{kind.function}(tc::Call* call) {{\n"
            f"  const tc::Call& c = *call;\n  if (threadIdx.x < {BLOCK.body_threads}) tc::{kind.function}(c);\n}}\n"
        )
    return emit.once("\n".join(parts))
