"""TileLang bodies of the GPU targets: as C against the ops' references in float64, and as CUDA through the rewriter.

No GPU is needed, and none of the CUDA code has run on one.
"""

from __future__ import annotations

import ctypes
import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from support.glm5_cases import CASES
from support.gpu_bodies import TILE_OPS, build_c_bodies, kernels_source, tile_body
from support.opharness import any_seed, assert_close, cases_of, expected, run_body, same_bits
from support.partial_steps import first, room, run_partly
from support.paths import TESTS
from tilecompile.ir.node import OpNode
from tilecompile.ops.testing import Case
from tilecompile.targets.cuda.build import FORBIDDEN, build
from tilecompile.targets.cuda.lower import LoweringError, rewrite, to_cuda
from tilecompile.targets.kind import Kind

TOLERANCE = 1e-4
"""Max error over RMS of results that are computed; selections and copies must be equal."""

ARCHITECTURES = ("sm_90a", "sm_100a")

SAMPLE = ("rms_norm", "layer_norm", "cache_append")
"""Ops whose CUDA form every run of the tests checks."""

REPEATED = (*SAMPLE, "topk_select", "argmax", "mla_attention")
"""Ops that are lowered twice; several of them have more than one reduction."""

LONG = ("map", "topk_select", "topk_candidates", "topk_merge", "index_score", "mla_attention")
"""Ops whose cases take TileLang long."""


def some(quick: Iterable[str]) -> list[Any]:
    """All ops as parameters, those that aren't quick marked as slow."""
    return [op if op in quick else pytest.param(op, marks=pytest.mark.slow) for op in TILE_OPS]


def in_float64(case: Case) -> list[torch.Tensor]:
    """The reference evaluated in float64 on the same numbers."""
    wide = {name: t.double() if t.dtype == torch.float32 else t.clone() for name, t in case.tensors.items()}
    return expected(dataclasses.replace(case, tensors=wide))


def check(
    library: ctypes.CDLL, kinds: dict[str, Kind], case: Case, parts: int, what: str, tokens: int | None = None
) -> None:
    """One case, divided into about `parts` tasks; with `tokens`, in a step of so many of its tokens."""
    kind, built = kinds[case.node.name], case.node
    case = case if tokens is None else first(case, tokens)
    fresh = dataclasses.replace(case, tensors={k: v.clone() for k, v in case.tensors.items()})
    want = expected(fresh)
    if case.tolerance and case.node.op != "rope_angles":  # whose angles are rounded to f32 by definition
        want = [w if w.is_floating_point() else exact for w, exact in zip(in_float64(case), want, strict=True)]
    mutated = {k: v for k, v in fresh.tensors.items() if not same_bits(v, case.tensors[k])}
    again = dataclasses.replace(case, tensors={k: v.clone() for k, v in case.tensors.items()})
    if tokens is None:
        got = run_body(library, kind, again, parts)
    else:
        got = run_partly(library, kind, dataclasses.replace(again, node=built), parts, tokens)
    tolerance = TOLERANCE if case.tolerance else 0
    if case.written is not None:
        left = got[0][~case.written]
        assert torch.equal(left.isnan(), torch.ones_like(left, dtype=torch.bool)), f"{what}: wrote too much"
        if not case.written.any():
            return
        got[0], want[0] = got[0][case.written], want[0][case.written]
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, tolerance, what)
    for name, w in mutated.items():
        assert_close(again.tensors[name], w, tolerance, f"{what} {name}")
    for name in again.tensors.keys() - mutated.keys():
        assert same_bits(again.tensors[name], case.tensors[name]), f"{what}: changed {name}"


@pytest.mark.parametrize("op", some(set(TILE_OPS) - set(LONG)))
def test_body_agrees_with_reference(op: str) -> None:
    seed = any_seed()
    cases = cases_of(op, seed)
    library, kinds = build_c_bodies([c.node for c in cases])
    for case in cases:
        for parts in (1, 2, 5):
            check(library, kinds, case, parts, f"{op} {case.node.name} parts={parts} seed={seed}")
        for tokens in range(1, room(case.node)):
            what = f"{op} {case.node.name} tokens={tokens} of {room(case.node)} seed={seed}"
            check(library, kinds, case, 2, what, tokens)


def check_glm5(op: str, tokens: int) -> None:
    """The op at GLM-5's shapes."""
    seed = any_seed()
    cases = list(CASES[op](torch.Generator().manual_seed(seed), tokens))
    library, kinds = build_c_bodies([c.node for c in cases])
    for case in cases:
        check(library, kinds, case, 4, f"{op} {case.node.name} tokens={tokens} seed={seed}")
        for some in {1, tokens // 2, tokens - 1} - {0, tokens}:
            check(library, kinds, case, 4, f"{op} {case.node.name} tokens={some} of {tokens} seed={seed}", some)


@pytest.mark.parametrize("op", some(set(LONG) - {"topk_candidates"}))
def test_bodies_agree_with_references_at_glm5_shapes(op: str) -> None:
    check_glm5(op, 3)


@pytest.mark.slow
@pytest.mark.parametrize("op", TILE_OPS)
@pytest.mark.parametrize("tokens", [1, 2, 4, 5, 6, 7, 8])
def test_bodies_agree_with_references_at_glm5_shapes_of_any_tokens(op: str, tokens: int) -> None:
    check_glm5(op, tokens)


def check_cuda(nodes: list[OpNode], architecture: str) -> None:
    """The nodes' bodies pass the rewriter and the compiler, without spills and without what no kernel may hold."""
    built = build(kernels_source(nodes, architecture), architecture)
    assert len(built.kernels) == len(nodes)
    for name, resources in built.kernels.items():
        assert resources.spills == resources.local == 0, f"{name}: {resources}"
        assert resources.registers * 288 <= 65536, f"{name}: {resources}"
    for word in FORBIDDEN:
        assert word not in built.ptx, word


@pytest.mark.parametrize("op", some(SAMPLE))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bodies_compile_for_gpus_within_limits(op: str, architecture: str) -> None:
    cases = [*cases_of(op, 0)[:4], *CASES[op](torch.Generator().manual_seed(0), 3)]
    check_cuda([case.node for case in cases], architecture)


@pytest.mark.slow
@pytest.mark.parametrize("op", TILE_OPS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bodies_of_many_tokens_compile_for_gpus_within_limits(op: str, architecture: str) -> None:
    check_cuda([case.node for case in CASES[op](torch.Generator().manual_seed(0), 8)], architecture)


@pytest.mark.slow
def test_lowering_gives_the_same_bytes_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with different hash seeds and empty caches make the same bytes."""
    program = (
        "from support.gpu_bodies import tile_body; from support.opharness import cases_of\n"
        "from tilecompile.targets.cuda.lower import to_cuda\n"
        f"print([to_cuda(tile_body(cases_of(op, 0)[0].node), a) for op in {REPEATED} for a in {ARCHITECTURES}])"
    )
    printed = []
    for seed in ("1", "2"):
        monkeypatch.setenv("TILECOMPILE_CACHE", str(tmp_path / seed))
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        command = [sys.executable, "-c", program]
        printed.append(subprocess.run(command, cwd=TESTS, capture_output=True, check=True).stdout)
    assert printed[0] == printed[1]
    assert printed[0].count(b"Lowered(") == len(REPEATED) * len(ARCHITECTURES)


def test_lowered_bodies_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILECOMPILE_CACHE", str(tmp_path))
    body = tile_body(cases_of("push", 0)[1].node)
    first = to_cuda(body, "sm_90a")
    monkeypatch.setattr("tilecompile.targets.cuda.lower.lower", None)
    assert to_cuda(body, "sm_90a") == first
    monkeypatch.undo()
    monkeypatch.setenv("TILECOMPILE_CACHE", str(tmp_path))
    other = dataclasses.replace(body, values=(*body.values[:-1], body.values[-1] + 1))
    assert to_cuda(other, "sm_90a") != first
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


KERNEL = """
extern "C" __global__ void __launch_bounds__(256, 1) k(float* __restrict__ y, const float* __restrict__ x) {
  extern __shared__ __align__(1024) uchar buf_dyn_shmem[];
  __syncthreads();
  y[((int)threadIdx.x)] = x[((int)threadIdx.x)];
}
"""


def test_rewriter_makes_a_device_function() -> None:
    lowered = rewrite(KERNEL, ("x", "y"), 64)
    text = lowered.function("copy")
    assert text.startswith("static __device__ __forceinline__ void copy(float* y, float* x, char* scratch) {")
    assert "tc::body_barrier();" in text
    assert "reinterpret_cast<uint8_t*>(scratch)" in text
    assert lowered.call("copy", ("c.arg<float>(0)", "c.arg<float>(1)")) == (
        "copy(c.arg<float>(1), c.arg<float>(0), c.scratch);"
    )


REDUCTIONS = """extern "C" __global__ void __launch_bounds__(256, 1) k(float* __restrict__ y) {
  extern __shared__ __align__(1024) uchar buf_dyn_shmem[];
  void* bins = ((void*)((char*)buf_dyn_shmem + 0));
  void* workspace = ((void*)((char*)buf_dyn_shmem + 1024));
  void* workspace_1 = ((void*)((char*)buf_dyn_shmem + 2048));
  ((int*)bins)[((int)threadIdx.x)] = 0;
  y[0] = tl::AllReduce<tl::MaxOp, 256, 1, 0, tl::NamedBarrier<256>>::run(y[0], (&(((int*)workspace_1)[0])));
  y[1] = tl::AllReduce<tl::MinOp, 256, 1, 0, tl::NamedBarrier<256>>::run(y[1], (&(((int*)workspace)[0])));
}
"""


def test_rewriter_gives_reductions_memory_of_their_own() -> None:
    """TileLang names and places its buffers for reductions in any order, but the text must always be the same."""
    lowered = rewrite(REDUCTIONS, ("y",), 3080)
    swapped = REDUCTIONS.replace("workspace_1)", "workspace_2)").replace("workspace)", "workspace_1)")
    assert rewrite(swapped.replace("workspace_2)", "workspace)"), ("y",), 3080) == lowered
    assert "y[0] = tc::reduce<tc::Max, 256>(y[0], scratch + 3088);" in lowered.source
    assert "y[1] = tc::reduce<tc::Min, 256>(y[1], scratch + 3088);" in lowered.source
    assert lowered.shared_bytes == 3088 + 8 * 4
    alone = rewrite(re.sub(r".*bins.*\n", "", REDUCTIONS), ("y",), 3080)
    assert "shmem" not in alone.source
    assert "(y[0], scratch + 0);" in alone.source
    assert alone.shared_bytes == 8 * 4
    with pytest.raises(LoweringError, match="takes memory for a reduction otherwise"):
        rewrite(REDUCTIONS.replace("workspace)[0]", "workspace)[1]"), ("y",), 3080)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("256, 1)", "128, 1)"),
        ("__syncthreads();", "__shared__ float a[2];"),
        ("__syncthreads();", "y[blockIdx.x] = 0;"),
        ("__syncthreads();", "y[gridDim.x] = 0;"),
        ("__syncthreads();", "tl::warpgroup_reg_alloc<240>();"),
        ("__syncthreads();", "if (tl::tl_shuffle_elect<128>()) {}"),
        ("__syncthreads();", "tl::cp_async_wait<0>();"),
        ("__syncthreads();", "y[0] = __ldg(x);"),
        ("__syncthreads();", 'asm volatile("");'),
        ("__syncthreads();", "y[0] = tl::AllReduce<tl::SumOp, 256, 1, 0>::run(y[0], (float*)buf_dyn_shmem);"),
        ("__syncthreads();", "y[0] = tl::AllReduce<tl::SumOp, 128, 4, 0, tl::NamedBarrier<256>>::run(y[0]);"),
        ("__syncthreads();", "y[0] = unheard_of(x[0]);"),
        ("const float* __restrict__ x", "const __grid_constant__ CUtensorMap x"),
        ("const float* __restrict__ x", "const float* __restrict__ z"),
        ("  extern __shared__ __align__(1024) uchar buf_dyn_shmem[];\n", ""),
    ],
)
def test_rewriter_refuses_what_it_does_not_know(old: str, new: str) -> None:
    assert old in KERNEL
    with pytest.raises(LoweringError):
        rewrite(KERNEL.replace(old, new), ("x", "y"), 64)
