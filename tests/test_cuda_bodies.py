"""Hand-written GPU bodies on the host: against float64 on the same weights, at odd shapes and at GLM-5's own."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator

import pytest
import torch
from cuda_bodies import Bench, error, prepare
from opharness import same_bits

from tilecompile.errors import InputError
from tilecompile.ops.base import REGISTRY, OpNode, View
from tilecompile.ops.testing import Case, normal

OPS = ("linear", "head_linear", "expert_linear", "expert_combine")
TOLERANCE = {"fp8": 1e-3, "bf16": 4e-3}


def as_type(case: Case, dtype: str, name: str) -> Case:
    """The case with weights of another type, of which its tensors are what is packed."""
    weights = tuple(dataclasses.replace(w, dtype=dtype) for w in case.node.weights)
    return dataclasses.replace(case, node=dataclasses.replace(case.node, weights=weights, name=name))


def with_tokens(case: Case, tokens: int, generator: torch.Generator) -> Case:
    """A case of an op whose operands' first dimension is the tokens, but that of the experts' ids."""
    views = []
    tensors = dict(case.tensors)
    for v in case.node.operands:
        if v.dtype == "i32" or len(v.shape) == 1:
            views.append(v)
            continue
        views.append(dataclasses.replace(v, shape=(tokens, *v.shape[1:])))
        if v.tensor in tensors:
            shape = (tokens, *tensors[v.tensor].shape[1:])
            tensors[v.tensor] = normal(generator, View.of(v.tensor, shape, v.dtype))
    written = None if case.written is None else case.written[:1].expand(tokens, *case.written.shape[1:])
    count = len(case.node.inputs)
    node = dataclasses.replace(case.node, inputs=tuple(views[:count]), outputs=tuple(views[count:]))
    return dataclasses.replace(case, node=node, tensors=tensors, written=written)


def check(benches: list[Bench], seed: int = 1) -> None:
    """Runs the benches: errors within the tolerance, every element of the write set written, and no other."""
    lib, kinds = prepare(benches)
    for bench, (kind, scratch) in zip(benches, kinds, strict=True):
        (got, *peers), written = bench.run(lib, kind, scratch, seed), bench.written()
        what = f"{bench.node.op} {bench.node.name}"
        assert not got[written].isnan().any(), f"{what}: elements of the write set aren't written"
        assert got[~written].isnan().all(), f"{what}: others are"
        assert all(same_bits(peer, got) for peer in peers), f"{what}: a peer has other values"
        if not written.any():  # a slot without an expert
            continue
        found = error(got, bench.wanted()[0], written)
        print(f"{what}: {found:.1e}")
        assert found <= TOLERANCE[bench.dtype], f"{what}: max error / RMS {found:.2e}"


@pytest.mark.parametrize("op", OPS)
def test_every_case(op: str) -> None:
    """The op's own random cases, with 1, 3 and 8 tokens, in bf16 and fp8, cut in 1 and 3."""
    generator = torch.Generator().manual_seed(5)
    module = importlib.import_module(f"tilecompile.ops.{op}.cases")
    benches = []
    for i, case in enumerate(module.cases(generator)):
        dtype = ("bf16", "fp8")[i // 2 % 2 ^ i % 2]
        changed = with_tokens(as_type(case, dtype, f"{case.node.name}{i}_{dtype}"), (1, 3, 8)[i % 3], generator)
        benches.append(Bench(changed, (1, 3)[i % 2]))
    if op == "linear":
        benches.append(Bench(linear("many_rows", 8, 120, 70, "fp8", two=True), 1))
    check(benches)


def linear(name: str, tokens: int, rows: int, cols: int, dtype: str, norm: bool = True, two: bool = False) -> Case:
    generator = torch.Generator().manual_seed(rows + cols + tokens)
    x, y = View.of("x", (tokens, cols), "f32"), View.of("y", (tokens, rows), "f32")
    weights = tuple(View.of(n, (rows, cols), dtype) for n in "wu"[: 1 + two])
    residual, scale = View.of("residual", (tokens, rows), "f32"), View.of("norm", (cols,), "f32")
    tensors = {v.tensor: normal(generator, v) for v in (x, residual, scale)}
    for w in weights:
        tensors[w.tensor] = torch.randn(w.shape, generator=generator) * cols**-0.5
    attrs: dict[str, object] = {"norm": 1e-5} if norm else {}
    attrs["epilogue"] = ("mul", ("silu", ("acc", 0)), ("acc", 1)) if two else ("add", ("in", 0), ("acc", 0))
    inputs = (x, *((scale,) if norm else ()), *(() if two else (residual,)))
    return Case(OpNode(name, "linear", inputs, weights, (y,), attrs), tensors)


def test_glm5_rows_of_a_device() -> None:
    """One tile each of q_a_proj (6144 columns, a norm) and of a dense layer's gate and up, as 132 workers have them."""
    cases = [
        linear("q_a", 1, 2048, 6144, "fp8"),
        linear("q_a_bf16", 3, 2048, 6144, "bf16"),
        linear("gate_up", 8, 1536, 6144, "fp8", two=True),
    ]
    check([Bench(case, 132, slice(1, 2)) for case in cases])


def glm5() -> Iterator[tuple[Case, int]]:
    """The products of GLM-5 on 8 devices (tensor parallel), with the number of workers."""
    for dtype in ("fp8", "bf16"):
        for tokens in (1, 3, 8) if dtype == "fp8" else (1, 3):
            name = f"{dtype}_{tokens}"
            yield linear(f"q_b_{name}", tokens, 2048, 2048, dtype), 132
            yield linear(f"o_{name}", tokens, 6144, 2048, dtype, norm=False), 132
            yield linear(f"down_{name}", tokens, 6144, 1536, dtype, norm=False), 148
            yield linear(f"shared_{name}", tokens, 256, 6144, dtype, two=True), 132
            yield linear(f"head_{name}", tokens, 19360, 6144, dtype), 132
            generator = torch.Generator().manual_seed(tokens)
            for label, rows, cols in (("uk", 512, 192), ("uv", 256, 512)):
                x, y = View.of("x", (tokens, 8, cols), "f32"), View.of("y", (tokens, 8, rows), "f32")
                w = View.of("w", (8, rows, cols), dtype)
                tensors = {"x": normal(generator, x), "w": torch.randn(w.shape, generator=generator)}
                yield Case(OpNode(f"{label}_{name}", "head_linear", (x,), (w,), (y,)), tensors), 132
            slots = 8
            expert = View.of("expert", (1, slots), "i32")
            ids = torch.tensor([[3, 0, -1, 1, 2, -1, -1, -1]], dtype=torch.int32)
            x, norm = View.of("x", (tokens, 6144), "f32"), View.of("norm", (6144,), "f32")
            hidden = View.of("hidden", (tokens, slots, 256), "f32")
            w, u = (View.of(n, (4, 256, 6144), dtype) for n in "wu")
            tensors = {v.tensor: normal(generator, v) for v in (x, norm, hidden)}
            tensors |= {v.tensor: torch.randn(v.shape, generator=generator) / 80 for v in (w, u)} | {"expert": ids}
            attrs = {"norm": 1e-5, "epilogue": ("mul", ("silu", ("acc", 0)), ("acc", 1))}
            node = OpNode(f"experts_{name}", "expert_linear", (x, norm, expert), (w, u), (hidden,), attrs)
            written = (ids[0] >= 0)[None, :, None].expand(hidden.shape)
            yield Case(node, tensors, written=written), 132
            down, weight = View.of("down", (4, 6144, 256), dtype), View.of("weight", (tokens, slots), "f32")
            y = View.of("y", (tokens, 6144), "f32")
            tensors = tensors | {
                "down": torch.randn(down.shape, generator=generator),
                "weight": torch.rand(weight.shape),
            }
            node = OpNode(f"combine_{name}", "expert_combine", (hidden, expert, weight), (down,), (y,))
            yield Case(node, tensors), 132


@pytest.mark.slow
def test_glm5_on_eight_devices() -> None:
    """The first and the last task of each."""
    for case, workers in glm5():
        for tasks in (slice(0, 1), slice(-1, None)):
            check([Bench(case, workers, tasks)])


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_bits_depend_on_the_token_alone(dtype: str) -> None:
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
def test_columns_from_within_a_block(begin: int) -> None:
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


def test_activations_of_any_size() -> None:
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


def test_what_bodies_cannot_take() -> None:
    node = linear("f", 1, 32, 64, "f32").node
    gpu = REGISTRY["linear"].gpu
    assert gpu is not None
    with pytest.raises(InputError, match="f: weights are f32, the bodies for GPUs take bf16, fp8"):
        gpu(node)
    part = dataclasses.replace(node, weights=(View.of("w", (32, 128), "fp8").narrow(1, 8, 72),))
    with pytest.raises(InputError, match="f begins at column 8 of w, in fp8 it must be a multiple of 16"):
        gpu(part)
