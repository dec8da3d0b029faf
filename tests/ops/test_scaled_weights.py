"""CPU bodies over weights with scales: exact against the same numbers in f64, the same bits however they are run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from support.opharness import RUNNABLE, any_seed, build_bodies, cases_of, run_body, same_bits
from tilecompile.errors import InputError
from tilecompile.ir.node import OpNode, View
from tilecompile.ir.tiling import Tiling
from tilecompile.ops.base import REGISTRY, reference_values
from tilecompile.ops.testing import Case, normal
from tilecompile.runtime.format import MAX_TOKENS
from tilecompile.runtime.weight_formats import FORMATS, ROWS
from tilecompile.targets.codecs import Quantised
from tilecompile.targets.cpu.build import Isa
from tilecompile.targets.cpu.windows import check_windows

SCALED = [name for name, stored in FORMATS.items() if stored.scaled and ROWS in stored.layouts]
STREAMING = ("linear", "head_linear", "expert_linear", "expert_combine")


def test_the_ops_that_stream_weights_are_known() -> None:
    found = {op for op in REGISTRY if op != "commit" and any(c.node.weights for c in cases_of(op, 0))}
    assert found == set(STREAMING)


def quantised(case: Case, dtype: str) -> tuple[Case, Case]:
    """A case with its weights in a format, spread over many magnitudes, and one with their values in f64."""
    node, tensors = case.node, dict(case.tensors)
    values = dict(tensors)
    for view in node.weights:
        whole = tensors[view.tensor].float()
        spread = torch.exp2(torch.randint(-12, 12, whole.shape).float())
        tensors[view.tensor] = whole = whole * spread
        stacked = whole.unsqueeze(0) if whole.dim() == 2 else whole
        read = Quantised(
            FORMATS[dtype], lambda name, m, a, b, t, w=stacked: w[m, a:b].to(t), lambda name, w=stacked: w.shape[1]
        )
        found = []
        for m in range(len(stacked)):
            numbers, scales = read.read(view.tensor, m, 0, stacked.shape[1])
            wide = scales.double().repeat_interleave(FORMATS[dtype].block[1], 1)[:, : stacked.shape[2]]
            found.append(numbers.double() * wide)
        values[view.tensor] = torch.stack(found).view(whole.shape)
    weights = tuple(dataclasses.replace(v, dtype=dtype) for v in node.weights)
    stored = dataclasses.replace(case, node=dataclasses.replace(node, weights=weights), tensors=tensors)
    return stored, dataclasses.replace(case, tensors=values)


def wider(generator: torch.Generator) -> list[Case]:
    """Several blocks of columns, whole and in part, for numbers of tokens around those that a block of them has."""
    found = []
    for tokens, rows, cols in (
        (1, 40, 131),
        (2, 33, 256),
        (5, 16, 300),
        (6, 17, 129),
        (7, 50, 386),
        (MAX_TOKENS, 20, 640),
    ):
        x, y = View.of("x", (tokens, cols), "f32"), View.of("y", (tokens, rows), "f32")
        w, u = (View.of(name, (rows, cols), "f32") for name in "wu")
        tensors = {v.tensor: normal(generator, v) for v in (x, w, u)}
        attrs = {"epilogue": ("mul", ("silu", ("acc", 0)), ("acc", 1))}
        found.append(Case(OpNode(f"one_{tokens}", "linear", (x,), (w,), (y,)), tensors))
        found.append(Case(OpNode(f"two_{tokens}", "linear", (x,), (w, u), (y,), attrs), tensors))
    return found


def cases(op: str, seed: int) -> list[Case]:
    """The op's own cases, and wider ones of linear."""
    generator = torch.Generator().manual_seed(seed)
    return cases_of(op, seed) + (wider(generator) if op == "linear" else [])


def check_close(got: torch.Tensor, want: torch.Tensor, scale: torch.Tensor, what: str) -> None:
    """Sums in f32: their error is one of the products' sizes, not of the sums'."""
    error = ((got.double() - want).abs() / (scale + 1e-30)).max()
    assert error <= 2e-6, f"{what}: {error:.2e} of the products' sizes"


@pytest.mark.parametrize("dtype", SCALED)
@pytest.mark.parametrize("op", STREAMING)
@pytest.mark.parametrize("isa", RUNNABLE, ids=lambda isa: isa.name)
def test_bodies_compute_with_the_scaled_numbers(op: str, dtype: str, isa: Isa) -> None:
    seed = any_seed()
    torch.manual_seed(seed)
    plain = [c for c in cases(op, seed) if "epilogue" not in c.node.attrs and "norm" not in c.node.attrs]
    pairs = [quantised(case, dtype) for case in plain]
    library, kinds = build_bodies([stored.node for stored, _ in pairs], isa)
    assert len(pairs) >= 2
    for stored, exact in pairs:
        node = exact.node
        inputs = [torch.as_strided(exact.tensors[v.tensor], v.shape, v.strides, v.offset) for v in node.inputs]
        as_double = [t.double() if t.is_floating_point() else t for t in inputs]
        sizes = [t.abs() if t.is_floating_point() else t for t in as_double]
        weights = [exact.tensors[v.tensor] for v in node.weights]
        want = reference_values(node, as_double, weights)[0]
        scale = reference_values(node, sizes, [w.abs() for w in weights])[0]
        for parts in (1, 3):
            got = run_body(library, kinds[stored.node.name], stored, parts)[0]
            where = ~got.isnan() if stored.written is None else stored.written
            assert where.any()
            check_close(got[where], want[where], scale[where], f"{op} {node.name} parts={parts} seed={seed}")


@pytest.mark.parametrize("dtype", SCALED)
@pytest.mark.parametrize("op", STREAMING)
def test_bits_depend_on_neither_instructions_nor_tiles_nor_tokens(op: str, dtype: str) -> None:
    """Builds that multiply and add in one instruction give the same; a token gives the same alone and among others."""
    seed = any_seed()
    torch.manual_seed(seed)
    stored = [quantised(case, dtype)[0] for case in cases(op, seed)]
    fused = [isa for isa in RUNNABLE if "fma" in isa.features]
    built = [build_bodies([case.node for case in stored], isa) for isa in fused or RUNNABLE]
    for case in stored:
        name = case.node.name
        found = [run_body(library, kinds[name], case, parts)[0] for library, kinds in built for parts in (1, 4)]
        assert all(same_bits(found[0], other) for other in found), f"{op} {name} seed={seed}"
        for tokens in range(1, min(len(found[0]), 9)):
            part = run_body(*(built[0][0], built[0][1][name]), case, 2, tokens)[0]
            same = part[:tokens].isnan() | (part[:tokens] == found[0][:tokens])
            assert same.all(), f"{op} {name} seed={seed}: {tokens} tokens"


def test_columns_that_begin_within_a_block_take_its_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device's part of the columns has the scales of the whole matrix; it must begin with a line."""
    torch.manual_seed(any_seed())
    rows, cols, linear = 40, 512, REGISTRY["linear"]

    def tiles_from(begin: int) -> Callable[[OpNode, int], Tiling]:
        def tile(node: OpNode, parts: int) -> Tiling:
            found = linear.tile(node, parts)
            moved = tuple(tuple((dataclasses.replace(t, col_begin=begin), s) for t, s in ts) for ts in found.weights)
            return dataclasses.replace(found, weights=moved)

        return tile

    whole = torch.randn(rows, cols) * torch.exp2(torch.arange(cols).float() / 40)
    x = torch.randn(1, cols)
    quantise = Quantised(FORMATS["fp8"], lambda name, m, a, b, t: whole[a:b].to(t), lambda name: rows)
    numbers, scales = quantise.read("w", 0, 0, rows)
    values = numbers.double() * scales.double().repeat_interleave(128, 1)
    for begin, end in ((64, 300), (4, 131), (200, 512)):
        part = View.of("x", (1, end - begin), "f32")
        weight = View.of("w", (rows, cols), "fp8").narrow(1, begin, end)
        node = OpNode(f"from_{begin}", "linear", (part,), (weight,), (View.of("y", (1, rows), "f32"),))
        case = Case(node, {"x": x[:, begin:end].contiguous(), "w": whole})
        library, kinds = build_bodies([node], RUNNABLE[0])
        with monkeypatch.context() as patch:
            patch.setitem(REGISTRY, "linear", dataclasses.replace(linear, tile=tiles_from(begin)))
            got = run_body(library, kinds[node.name], case, 1)[0]
        want = x[:, begin:end].double() @ values[:, begin:end].T
        size = x[:, begin:end].double().abs() @ values[:, begin:end].abs().T
        check_close(got, want, size, node.name)
    weight = View.of("w", (rows, cols), "fp8").narrow(1, 6, 70)
    node = OpNode("late", "linear", (View.of("x", (1, 64), "f32"),), (weight,), (View.of("y", (1, rows), "f32"),))
    with pytest.raises(InputError, match="late begins at column 6 of w, in fp8 it must be a multiple of 4"):
        check_windows([node])
    weight = View.of("w", (rows, cols), "fp8").narrow(0, 12, 40)
    node = OpNode("low", "linear", (View.of("x", (1, cols), "f32"),), (weight,), (View.of("y", (1, 28), "f32"),))
    with pytest.raises(InputError, match="low begins at row 12 of w, in fp8 it must be a multiple of 16"):
        check_windows([node])
