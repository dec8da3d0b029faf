"""An engine's GPU kernel as a library for the host, for the driver of fake_cuda.py: the loop's own text and all bodies.

The loop and the hand-written bodies are the very text that the GPU runs, over functions of `cuda_host` in the place of
PTX; bodies in TileLang are what TileLang makes of them for C.
"""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from support.c_bodies import to_c
from support.cuda_bodies import HOST
from support.gpu_bodies import FLAGS
from tilecompile.compile import compile_model
from tilecompile.engine import kernels
from tilecompile.ops.kit.body import HandBody, TileBody
from tilecompile.options import CompileOptions
from tilecompile.runtime.folder.contract import MARK
from tilecompile.runtime.format import BLOCK, FILL, MEGAKERNEL, BlockShape, block_header, c_header
from tilecompile.targets.cpu.build import find_compiler
from tilecompile.targets.cuda import emit
from tilecompile.targets.cuda.build import toolkit
from tilecompile.targets.cuda.emit import GpuKind, once
from tilecompile.targets.cuda.kernel import Kernel, make_kernel

FAKE = Path(__file__).parent / "fake_cuda"
SCRATCH = 1 << 20


def compile_for_host(options: CompileOptions, cubin: bool = False) -> Path:
    """Compiles an engine and, beside its folder, the library of its kernel; returns that.

    Without `cubin` the engine has a stand-in for its GPU kernel, which saves most of the time.
    """
    seen: list[tuple[list[GpuKind], Mapping[int, int], int]] = []

    def make(kinds: list[GpuKind], panels: Mapping[int, int], architecture: str, shared: int, *rest: Any) -> Kernel:
        seen.append((kinds, panels, shared))
        return make_kernel(kinds, panels, architecture, shared, *rest) if cubin else stand_in(kinds, shared, *rest)

    with mock.patch.object(kernels, "make_kernel", make):
        compile_model(options)
    return build(options.output.with_suffix(".host"), *seen[0])


def stand_in(kinds: list[GpuKind], shared: int, title: str, contract: Mapping[str, Any]) -> Kernel:
    """What loading takes for a kernel: the head of an ELF file for GPUs, names, and what it was built for."""
    texts = [b"", MEGAKERNEL.encode(), FILL.encode(), (MARK + json.dumps(contract)).encode(), b""]
    body = b"\0".join(texts)
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 2, 190, 1, 0, 0, 64 + len(body), 0x6005A04, 64, 0, 0, 64, 0, 0)
    used = {"registers": 128, "local": 0, "spills": 0}
    taken = [{**used, "shared": 0, "kind": kind.function} for kind in kinds]
    ring = {"slot_bytes": BLOCK.slot_bytes, "slots": replace(BLOCK, shared_bytes=shared).slots}
    whole = {**used, "shared": shared, "dynamic_shared": shared}
    resources = {"toolkit": toolkit(), "kernel": whole, "ring": ring, "kinds": taken}
    return Kernel(f"// {title}\n", head + body, resources)


def build(folder: Path, kinds: list[GpuKind], panels: Mapping[int, int], shared: int) -> Path:
    """The library, in a folder of its own."""
    folder.mkdir()
    names = f'constexpr char MEGAKERNEL[] = "{MEGAKERNEL}", FILL[] = "{FILL}";\n'
    names += f"constexpr uint32_t BLOCK_THREADS = {BLOCK.threads};\n"
    shape = BlockShape(lanes=1, warps=3, shared_bytes=shared)
    loop = [c_header(), block_header(shape), names, (HOST / "resident.h").read_text()]
    loop += [emit.header(name) for name in ("ring.cuh", "call.cuh", *emit.LOOP)]
    (folder / "loop.h").write_text("#include <algorithm>\n" + once("\n".join(loop)))
    (folder / "streams.cpp").write_text(_streams(kinds, panels))
    (folder / "tiles.cpp").write_text(_tiles(kinds))
    units: list[tuple[str, Path, list[str]]] = [
        ("loop", HOST / "resident.cpp", [f"-I{folder}", f"-I{FAKE}"]),
        ("streams", folder / "streams.cpp", ["-mf16c", "-mfma"]),
        ("tiles", folder / "tiles.cpp", []),
    ]
    options = [flag for flag in FLAGS if flag != "-shared"]

    def compile_unit(unit: tuple[str, Path, list[str]]) -> str:
        name, source, more = unit
        out = str(folder / f"{name}.o")
        subprocess.run([find_compiler(), *options, *more, "-c", "-o", out, str(source)], check=True)
        return out

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_unit, units))
    library = folder / "kernel.so"
    subprocess.run([find_compiler(), "-shared", "-o", str(library), *objects, "-lpthread"], check=True)
    return library


def _streams(kinds: list[GpuKind], panels: Mapping[int, int]) -> str:
    """The hand-written bodies over warp.h."""
    mine = [kind for kind in kinds if isinstance(kind.body, HandBody)]
    made = emit.bodies(mine, panels, "sm_90a")
    names = {kind.index: f"tc::{kind.function}" for kind in mine}
    last = max(kind.index for kind in kinds)
    bodies = ", ".join(names.get(i, "nullptr") for i in range(last + 1))
    scratch = ", ".join(str(made.scratch.get(i, 0)) for i in range(last + 1))
    shape = replace(BLOCK, scratch_bytes=SCRATCH, shared_bytes=4 * SCRATCH)
    parts = [c_header(), block_header(shape), "#include <algorithm>", (HOST / "warp.h").read_text()]
    parts += [emit.header(name) for name in ("call.cuh", "scalar.cuh", "ranked.cuh", "sampling.h")]
    parts += [made.source, f"static void (*const BODIES[])(const tc::Call&) = {{{bodies}}};"]
    parts += [f"constexpr uint32_t SCRATCH[] = {{{scratch}}};"]
    parts += [(HOST / name).read_text() for name in ("bodies.h", "stream_bodies.h")]
    return once("\n".join(parts))


def _tiles(kinds: list[GpuKind]) -> str:
    """What TileLang makes of its bodies for C."""
    functions: dict[str, int] = {}
    cases = []
    for kind in kinds:
        if isinstance(kind.body, TileBody):
            lowered = to_c(kind.body)
            number = functions.setdefault(lowered.source, len(functions))
            cases.append(f"    case {kind.index}: {lowered.call(f'body{number}', kind.body.args)} return;")
    sources = [source.replace("@NAME@", f"body{number}") for source, number in functions.items()]
    return "\n".join([once(c_header()), (HOST / "tile_bodies.h").read_text(), *sources, _CHOICE % "\n".join(cases)])


_CHOICE = """
void run_tile_body(uint32_t kind, const Instruction* ins, const Step* step, const uint64_t* operands) {
  const Call c{ins, step, operands, nullptr};
  switch (kind) {
%s
  }
  abort();
}
"""
