"""The kernel of an engine for GPUs: source, cubin, and what it takes of an SM, checked against the limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from tilecompile.errors import InputError
from tilecompile.ops.kit.body import StreamBody
from tilecompile.runtime.folder.contract import MARK
from tilecompile.runtime.format import BLOCK, FILL, FILL_THREADS, LEAST_SLOTS, MEGAKERNEL, SHARED_BYTES
from tilecompile.targets.cuda.build import (
    Built,
    Resources,
    build,
    check_instructions,
    check_resources,
    instructions,
    toolkit,
)
from tilecompile.targets.cuda.emit import FRONT, LOOP, GpuKind, bodies, front, once

BULK = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
"""The instruction that copies weights to shared memory."""


@dataclass(frozen=True)
class Kernel:
    """A kernel's source and cubin, and the manifest's entry about what it takes."""

    source: str
    cubin: bytes
    resources: dict[str, Any]

    def __str__(self) -> str:
        return self.source


def make_kernel(
    kinds: list[GpuKind],
    panels: Mapping[int, int],
    architecture: str,
    shared_bytes: int | None,
    title: str,
    contract: Mapping[str, Any],
) -> Kernel:
    """The resident kernel of all kinds; `panels` are those of the largest weight tile of each kind that has any.

    `shared_bytes` is what a block of the machine can have. InputError, which names the kind, for one that spills or
    needs more than an SM has, or holds instructions that it shouldn't.
    """
    shared = min(shared_bytes or SHARED_BYTES, SHARED_BYTES)
    made = bodies(kinds, panels, architecture)
    room = shared - BLOCK.front_bytes - LEAST_SLOTS * BLOCK.slot_bytes
    for kind in kinds:
        takes = replace(BLOCK, scratch_bytes=made.scratch[kind.index]).scratch
        if takes > room:
            raise InputError(
                f"{kind.function} ({kind.operator}) takes {takes} bytes of shared memory beside the ring, "
                f"{room} are free"
            )
    head = f"// {title}\n// One resident megakernel: task bodies specialised to shapes, and the loop over the tables.\n"
    shape = replace(BLOCK, scratch_bytes=max(made.scratch.values(), default=0), shared_bytes=shared)
    probes = build(once("\n".join([front(shape), made.source, *map(_probe, kinds)])), architecture)
    of_kind = [_check(kind, probes) for kind in kinds]
    stated = json.dumps(MARK + json.dumps(contract))
    about = f'extern "C" __device__ const char tc_contract[] = {stated};\n'
    loop = front(shape, (*FRONT, *LOOP))
    source = once("\n".join([head, loop, made.source, _entry(kinds), about]))
    whole = build(source, architecture)
    used = whole.kernels[MEGAKERNEL]
    check_resources(MEGAKERNEL, used, shared)
    check_instructions(MEGAKERNEL, instructions(whole.ptx)[MEGAKERNEL], (BULK, "mbarrier.try_wait", "red.release.gpu"))
    kinds_of = [
        {**asdict(resources), "shared": made.scratch[kind.index], "kind": kind.function}
        for kind, resources in zip(kinds, of_kind, strict=True)
    ]
    ring = {"slot_bytes": shape.slot_bytes, "slots": shape.slots}
    taken = {**asdict(used), "shared": used.shared + shared, "dynamic_shared": shared}
    resources = {"toolkit": toolkit(), "kernel": taken, "ring": ring, "kinds": kinds_of}
    return Kernel(source, whole.cubin, resources)


def _check(kind: GpuKind, probes: Built) -> Resources:
    """What a kind takes by itself; InputError if that is too much, or its instructions are not what they should be."""
    name = f"probe_{kind.function}"
    check_resources(kind.function, probes.kernels[name])
    required = ("mma.sync", "ld.shared.v4") if isinstance(kind.body, StreamBody) else ()
    check_instructions(kind.function, instructions(probes.ptx)[name], required)
    return probes.kernels[name]


def _probe(kind: GpuKind) -> str:
    """The source of a kernel of one kind, which is built to measure what its body takes."""
    return f"""
extern "C" __global__ void __launch_bounds__(tc::THREADS, 1)
probe_{kind.function}(const Instruction* ins, const Step* step, const uint64_t* operands, uint64_t* barriers) {{
  tc::Ring ring{{tc::shared_memory() + tc::SCRATCH_BYTES, barriers, barriers + tc::STAGES,
                reinterpret_cast<uint32_t*>(barriers + 2 * tc::STAGES), {{}}}};
  const tc::Call c{{ins, step, operands, tc::shared_memory(), ring}};
  if (tc::thread() < tc::CONSUMERS) tc::{kind.function}(c);
}}
"""


def _entry(kinds: list[GpuKind]) -> str:
    """The choice of a body, and the kernel."""
    cases = "\n".join(f"      case {kind.index}: return {kind.function}(c);" for kind in kinds)
    return f"""namespace tc {{

struct Bodies {{
  TC_DEVICE static void run(uint32_t kind, const Call& c) {{
    switch (kind) {{
{cases}
    }}
  }}
}};

}}  // namespace tc

extern "C" __global__ void __launch_bounds__(tc::THREADS, 1)
{MEGAKERNEL}(const __grid_constant__ DeviceLaunch launch) {{
  tc::resident<tc::Bodies>(launch);
}}

extern "C" __global__ void __launch_bounds__({FILL_THREADS}) {FILL}(const DeviceFill* fills, uint32_t seed) {{
  tc::random_fill(fills, seed, {FILL_THREADS});
}}
"""
