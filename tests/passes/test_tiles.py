"""Weight tiles: their packed bytes hold the original rows, and tiling rules cover every row exactly once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tilecompile.ops  # noqa: F401  (registers the ops)
from tilecompile.ir.node import OpNode, View
from tilecompile.ir.tiling import PANEL, Tiling, WeightTile
from tilecompile.ops.base import REGISTRY
from tilecompile.targets.codecs import CODECS

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


@st.composite
def tiles(draw: st.DrawFn) -> tuple[WeightTile, dict[str, torch.Tensor]]:
    """A plain, paired or gathered tile somewhere in random matrices, with the matrices."""
    matrices, rows, cols = draw(st.integers(1, 4)), draw(st.integers(1, 70)), draw(st.integers(1, 20))
    begin, row_begin = draw(st.integers(0, matrices - 1)), draw(st.integers(0, rows - 1))
    end, row_end = draw(st.integers(begin + 1, matrices)), draw(st.integers(row_begin + 1, rows))
    names = ("w", "u")[: draw(st.integers(1, 2))]
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    # No weight is zero, so that padding can't pass for one.
    tensors = {n: (torch.rand((matrices, rows, cols), generator=generator) + 0.5).to(dtype) for n in names}
    return WeightTile(names, begin, end, row_begin, row_end, cols, draw(st.booleans())), tensors


@given(tiles())
@settings(deadline=None)
def test_packed_bytes_unpack_to_the_rows(drawn: tuple[WeightTile, dict[str, torch.Tensor]]) -> None:
    tile, tensors = drawn
    dtype = tensors["w"].dtype
    stored = {4: "f32", 2: "bf16"}[dtype.itemsize]
    pack = CODECS[stored].packer(lambda name, m, begin, end, _: tensors[name][m, begin:end], lambda _: 0)
    packed = pack(tile, range(tile.begin, tile.end)).view(torch.uint8)
    experts = tile.end - tile.begin if tile.gathered else 1
    assert len(packed) == experts * tile.bytes(stored)

    rows = tile.row_end - tile.row_begin
    panels = -(-rows // PANEL)
    values = packed.view(dtype)
    # Lane r of panel p is row 16 p + r; panels of the tensors alternate; matrices follow one another.
    values = values.view(tile.end - tile.begin, panels, len(tile.tensors), tile.cols * PANEL)
    pairs = tile.cols // 2 * 2 if dtype == torch.bfloat16 else 0  # columns that are stored two by two
    for m in range(tile.begin, tile.end):
        for i, name in enumerate(tile.tensors):
            words, rest = values[m - tile.begin, :, i].split([pairs * PANEL, (tile.cols - pairs) * PANEL], 1)
            left = words.view(panels, pairs // 2, PANEL, 2).permute(0, 2, 1, 3).reshape(panels * PANEL, pairs)
            right = rest.view(panels, tile.cols - pairs, PANEL).transpose(1, 2).reshape(panels * PANEL, -1)
            unpacked = torch.cat((left, right), 1)
            assert torch.equal(unpacked[:rows], tensors[name][m, tile.row_begin : tile.row_end])
            assert not unpacked[rows:].any()


def node_of(op: str, tokens: int, slots: int, experts: int, rows: int, cols: int, weights: int, dtype: str) -> OpNode:
    """A node of a streaming op with everything folded in that the op takes."""
    matrix = (rows, cols) if op == "linear" else (experts, rows, cols)
    x = View.of("x", (tokens, slots, cols) if op == "expert_combine" else (tokens, cols), "f32")
    y = View.of("y", (tokens, slots, rows) if op == "expert_linear" else (tokens, rows), "f32")
    norm, extra = View.of("norm", (cols,), "f32"), View.of("extra", y.shape, "f32")
    expert, slot_weight = View.of("expert", (1, slots), "i32"), View.of("slot_weight", (tokens, slots), "f32")
    inputs = {
        "linear": (x, norm, extra),
        "expert_linear": (x, norm, expert, slot_weight, extra),
        "expert_combine": (x, expert, slot_weight, extra),
    }[op]
    attrs = {"epilogue": ("add", ("in", 0), ("acc", weights - 1))}
    if op != "expert_combine":
        attrs["norm"] = 1e-5
    return OpNode(op, op, inputs, tuple(View.of(name, matrix, dtype) for name in "wu"[:weights]), (y,), attrs)


def written(tiling: Tiling, shape: tuple[int, ...]) -> np.ndarray:
    """How many tasks write each element of the one output."""
    (access,) = tiling.writes
    counts = np.zeros(shape, np.int64)
    for task in range(len(tiling.coords)):
        box = [[int(b) if np.ndim(b) == 0 else int(b[task]) for b in bounds] for bounds in access.box]
        counts[tuple(slice(lo, hi) for lo, hi in box)] += 1
    return counts


@pytest.mark.parametrize("op", ["linear", "expert_linear", "expert_combine"])
@given(
    tokens=st.integers(1, 8),
    slots=st.integers(1, 12),
    experts=st.integers(1, 9),
    rows=st.integers(1, 600),
    cols=st.integers(1, 40),
    weights=st.integers(1, 2),
    dtype=st.sampled_from(sorted(DTYPES)),
    parts=st.integers(1, 70),
)
@settings(deadline=None)
def test_tiles_cover_every_row_once(
    op: str, tokens: int, slots: int, experts: int, rows: int, cols: int, weights: int, dtype: str, parts: int
) -> None:
    weights = 1 if op == "expert_combine" else weights
    node = node_of(op, tokens, slots, experts, rows, cols, weights, dtype)
    tiling = REGISTRY[op].tile(node, parts)
    tasks = len(tiling.coords)
    assert tiling.coords.dtype == np.int32
    assert len(tiling.weights) == len(tiling.cost) == tasks
    assert (tiling.coords[:, 0] % PANEL == 0).all()

    read: Counter[tuple[int, int]] = Counter()
    for coords, cost, streamed in zip(tiling.coords, tiling.cost, tiling.weights, strict=True):
        begin, end, slot, _ = map(int, coords)
        if op == "expert_combine":
            assert [s for _, s in streamed] == list(range(slots))
        else:
            assert [s for _, s in streamed] == [slot if op == "expert_linear" else -1]
        for tile, s in streamed:
            assert (tile.row_begin, tile.row_end, tile.cols) == (begin, end, cols)
            assert tile.tensors == tuple(w.tensor for w in node.weights)
            assert (tile.begin, tile.end, tile.gathered) == ((0, 1, False) if op == "linear" else (0, experts, True))
            read.update((s, row) for row in range(begin, end))
        element = 4 if dtype == "f32" else 2
        assert cost == (end - begin) * cols * element * len(streamed) * weights
    assert read == Counter({(s, row): 1 for s in ([-1] if op == "linear" else range(slots)) for row in range(rows)})
    assert (written(tiling, node.outputs[0].shape) == 1).all()
    # Never more row tiles than parts.
    assert tasks <= parts * (slots if op == "expert_linear" else 1)
