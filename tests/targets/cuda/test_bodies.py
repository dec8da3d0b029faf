"""Hand-written GPU bodies on the host: against float64 on the same weights, at odd shapes and at GLM-5's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch

from support.cuda_bodies import Bench, error, prepare
from support.opharness import cases_of, same_bits
from support.partial_steps import room
from support.stream_cases import OPS, every_case, glm5, linear
from tilecompile.errors import InputError
from tilecompile.ir.node import OpNode, View
from tilecompile.ops.base import REGISTRY
from tilecompile.ops.testing import Case, normal

TOLERANCE = {"fp8": 1e-3, "bf16": 4e-3}


def check(benches: list[Bench], partly: Sequence[int] = (), seed: int = 1) -> None:
    """Runs the benches: errors within the tolerance, every element of the write set written, and no other.

    Each also in steps of as many of its tokens as `partly` says, where it has more.
    """
    lib, kinds = prepare(benches)
    runs = [(b, k, n) for b, k in zip(benches, kinds, strict=True) for n in (None, *partly) if (n or 0) < room(b.node)]
    for bench, (kind, scratch), tokens in runs:
        (got, *peers), written = bench.run(lib, kind, scratch, seed, tokens), bench.written()[:tokens]
        what = f"{bench.node.op} {bench.node.name} tokens={tokens}"
        assert not got[written].isnan().any(), f"{what}: elements of the write set aren't written"
        assert got[~written].isnan().all(), f"{what}: others are"
        assert all(same_bits(peer, got) for peer in peers), f"{what}: a peer has other values"
        if not written.any():  # a slot without an expert
            continue
        found = error(got, bench.wanted(tokens)[0], written)
        print(f"{what}: {found:.1e}")
        assert found <= TOLERANCE[bench.dtype], f"{what}: max error / RMS {found:.2e}"


@pytest.mark.parametrize("op", OPS)
def test_bodies_agree_with_references_on_the_ops_cases(op: str) -> None:
    """The op's own random cases, with 1, 3 and 8 tokens, in bf16 and fp8, cut in 1 and 3; in smaller steps too."""
    check([Bench(case, parts) for case, parts in every_case(op)], partly=(1, 2, 5))


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("tokens", range(1, 9))
def test_bodies_agree_with_references_at_any_tokens(op: str, tokens: int) -> None:
    """Programs of any number of tokens, in steps of any number of these."""
    check([Bench(case, parts) for case, parts in every_case(op, (tokens,))], partly=range(1, tokens))


def test_bodies_agree_with_references_on_rows_of_glm5() -> None:
    """One tile each of q_a_proj (6144 columns, a norm) and of a dense layer's gate and up, as 132 workers have them."""
    cases = [
        linear("q_a", 1, 2048, 6144, "fp8"),
        linear("q_a_bf16", 3, 2048, 6144, "bf16"),
        linear("gate_up", 8, 1536, 6144, "fp8", two=True),
    ]
    check([Bench(case, 132, slice(1, 2)) for case in cases])


@pytest.mark.slow
def test_bodies_agree_with_references_on_glm5_over_eight_devices() -> None:
    """The first and the last task of each."""
    for case, workers in glm5():
        for tasks in (slice(0, 1), slice(-1, None)):
            check([Bench(case, workers, tasks)])


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_bits_depend_on_nothing_but_the_token(dtype: str) -> None:
    """Neither on how rows are cut, nor on other tokens, nor on the order in which threads run."""
    case, one = linear("a", 3, 96, 300, dtype), linear("b", 1, 96, 300, dtype)
    tensors = {name: t[1:2] if name in ("x", "residual") else t for name, t in case.tensors.items()}
    benches = [Bench(case, 1), Bench(dataclasses.replace(one, tensors=tensors), 1), Bench(case, 6)]
    lib, kinds = prepare(benches[:2])
    (whole,) = benches[0].run(lib, *kinds[0])
    (alone,) = benches[1].run(lib, *kinds[1])
    assert torch.equal(alone[0], whole[1])
    for bench, seed in ((benches[0], 77), (benches[2], 1)):
        (other,) = bench.run(lib, *kinds[0], seed)
        assert torch.equal(other, whole)


def run(case: Case, parts: int, seed: int = 1) -> list[torch.Tensor]:
    bench = Bench(case, parts)
    lib, ((kind, scratch),) = prepare([bench])
    return bench.run(lib, kind, scratch, seed)


@pytest.mark.parametrize("begin", [112, 160])
def test_a_product_of_columns_may_begin_within_a_scale_block(begin: int) -> None:
    """A device's part of the columns of an fp8 matrix, whose blocks are those of the whole one."""
    generator = torch.Generator().manual_seed(1)
    rows, cols, width = 40, 400, 200
    x, y = View.of("x", (3, width), "f32"), View.of("y", (3, rows), "f32")
    w = View.of("w", (rows, cols), "fp8").narrow(1, begin, begin + width)
    scales = torch.rand(1, cols, generator=generator) * 4
    tensors = {"x": normal(generator, x), "w": torch.randn(rows, cols, generator=generator) * scales}
    bench = Bench(Case(OpNode("part", "linear", (x,), (w,), (y,)), tensors), 1, col_begin=begin)
    bench.tiling = dataclasses.replace(
        bench.tiling,
        weights=tuple(tuple((dataclasses.replace(t, cols=width), s) for t, s in ts) for ts in bench.tiling.weights),
    )
    bench.values["w"] = torch.zeros(1, rows, cols, dtype=torch.float64)
    check_part(bench, begin, width)


def check_part(bench: Bench, begin: int, width: int) -> None:
    lib, ((kind, scratch),) = prepare([bench])
    (got,) = bench.run(lib, kind, scratch)
    want = bench.case.tensors["x"].double() @ bench._whole("w")[0, :, begin : begin + width].double().T
    quantised = bench.case.tensors["x"].double() @ bench.values["w"][0, :, begin : begin + width].T
    everywhere = torch.ones(got.shape, dtype=torch.bool)
    assert error(got, quantised, everywhere) <= 1e-3
    assert 1e-3 < error(got, want, everywhere) < 0.2  # fp8 is not f32, but its scales are right


def test_activations_of_any_magnitude_keep_their_precision() -> None:
    """fp8 weights take activations as f16, scaled for each token: none is too large or too small."""
    case = linear("wide", 3, 32, 200, "fp8", norm=False)
    case.tensors["residual"].zero_()
    case.tensors["x"] *= torch.tensor([[1e8], [1e-9], [0.0]])
    (got,) = run(case, 1)
    bench = Bench(case, 1)
    bench.packed(bench.tiling.weights[0][0][0], 0)
    (want,) = bench.wanted()
    assert not got[2].any()
    for t in (0, 1):
        assert error(got[t], want[t], torch.ones(32, dtype=torch.bool)) <= 1e-3


def test_weights_that_bodies_can_not_take_are_refused() -> None:
    node = linear("f", 1, 32, 64, "f32").node
    gpu = REGISTRY["linear"].gpu
    assert gpu is not None
    with pytest.raises(InputError, match="f: weights are f32, the bodies for GPUs take bf16, fp8"):
        gpu(node)
    part = dataclasses.replace(node, weights=(View.of("w", (32, 128), "fp8").narrow(1, 8, 72),))
    with pytest.raises(InputError, match="f begins at column 8 of w, in fp8 it must be a multiple of 16"):
        gpu(part)


@pytest.mark.parametrize("op", ["linear", "rms_norm"])
def test_more_tokens_than_bodies_take_are_refused(op: str) -> None:
    case = cases_of(op, 1)[0]
    views = [
        dataclasses.replace(v, shape=(9, *v.shape[1:])) if v.shape[0] == room(case.node) else v
        for v in case.node.operands
    ]
    inputs, outputs = tuple(views[: len(case.node.inputs)]), tuple(views[len(case.node.inputs) :])
    gpu = REGISTRY[op].gpu
    assert gpu is not None
    with pytest.raises(InputError, match="has 9 tokens, the bodies for GPUs take at most 8"):
        gpu(dataclasses.replace(case.node, inputs=inputs, outputs=outputs))
