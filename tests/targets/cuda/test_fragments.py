"""Fragment order: against a statement of its own of the PTX layout, by unpacking, and the pools of whole programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilecompile.engine.weights import pack
from tilecompile.errors import InputError
from tilecompile.ir.graph import Tensor
from tilecompile.ir.program import PlacedTile, Program
from tilecompile.ir.tiling import WeightTile
from tilecompile.runtime.format import FRAGMENT_BYTES
from tilecompile.runtime.progress import silent
from tilecompile.runtime.weight_formats import BF16, FP8
from tilecompile.targets.codecs import CODECS, Copy, Quantised
from tilecompile.targets.cuda.fragments import fragments, pack_copy, unfragmented

E4M3 = torch.float8_e4m3fn


def place_of(lane: int, i: int) -> tuple[int, int]:
    """Row and column of element a_i of matrix A of mma.m16n8k16, as the PTX ISA states it."""
    group, thread = lane >> 2, lane % 4
    row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
    col = thread * 2 + (i & 1) if i < 4 else thread * 2 + (i & 1) + 8
    return row, col


@pytest.mark.parametrize(("dtype", "width"), [(torch.bfloat16, 16), (E4M3, 32)])
def test_fragments_have_the_order_of_the_tensor_cores(dtype: torch.dtype, width: int) -> None:
    """Every element of every lane, one by one; elements outside of the matrix are zero."""
    rows, cols = 37, 2 * width + 5
    bits = torch.arange(1, rows * cols + 1, dtype=torch.int16 if dtype.itemsize == 2 else torch.int32)
    bits = bits if dtype.itemsize == 2 else (bits % 251 + 1).to(torch.uint8)
    matrix = bits.view(rows, cols).view(dtype)
    blocks = fragments(matrix)
    assert blocks.shape == (3, 3, 32, 16)
    wanted = bits.view(rows, cols).tolist()
    found = blocks.view(bits.dtype).tolist()
    for panel in range(3):
        for block in range(3):
            for lane in range(32):
                for element in range(width // 2):
                    row, col = place_of(lane, element % 8)
                    row, col = 16 * panel + row, width * block + 16 * (element // 8) + col
                    inside = row < rows and col < cols
                    assert found[panel][block][lane][element] == (wanted[row][col] if inside else 0)


@given(st.integers(1, 70), st.integers(1, 90), st.sampled_from([torch.bfloat16, E4M3]))
@settings(deadline=None)
def test_unfragmented_inverts_fragments(rows: int, cols: int, dtype: torch.dtype) -> None:
    bits = torch.randint(0, 256, (rows, cols * dtype.itemsize), dtype=torch.uint8)
    found = unfragmented(fragments(bits.view(dtype)), rows, cols, dtype)
    assert torch.equal(found.view(torch.uint8), bits)


class Drawn:
    """A source of one or two stacks of matrices."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def read(self, name: str, matrix: int, row_begin: int, row_end: int, dtype: torch.dtype) -> torch.Tensor:
        return self.tensors[name][matrix, row_begin:row_end].to(dtype)


@st.composite
def tiles(draw: st.DrawFn) -> tuple[WeightTile, dict[str, torch.Tensor], str]:
    """A plain, paired or gathered tile somewhere in random matrices, the matrices, and the type to pack them in."""
    dtype = draw(st.sampled_from(["bf16", "fp8"]))
    matrices, rows, cols = draw(st.integers(1, 3)), draw(st.integers(1, 200)), draw(st.integers(1, 300))
    begin = draw(st.integers(0, matrices - 1))
    row_begin = draw(st.integers(0, (rows - 1) // 16)) * 16
    col_begin = draw(st.integers(0, cols - 1))
    end, row_end = draw(st.integers(begin + 1, matrices)), draw(st.integers(row_begin + 1, rows))
    names = ("w", "u")[: draw(st.integers(1, 2))]
    width = draw(st.integers(1, cols - col_begin))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    tensors = {n: torch.randn((matrices, rows, cols), generator=generator) for n in names}
    tile = WeightTile(names, begin, end, row_begin, row_end, width, draw(st.booleans()), col_begin, "fragments")
    return tile, tensors, dtype


@given(tiles())
@settings(deadline=None, max_examples=60)
def test_pools_unpack_to_the_rows(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[WeightTile, dict[str, torch.Tensor], str]
) -> None:
    """A pool as the packer writes it, of f32: bf16 is rounded, fp8 quantised by blocks of whole matrices."""
    tile, tensors, dtype = drawn
    path = tmp_path_factory.mktemp("pool") / "pool"
    size = tile.bytes(dtype)
    copies = tile.end - tile.begin if tile.gathered else 1
    program: Any = Program({}, [], [], [], [], [PlacedTile(0, tile, 0, 64, size)], [], [], [64 + copies * size], 0)
    shapes = {n: Tensor(n, tuple(t.shape), dtype, "weight") for n, t in tensors.items()}
    pack(program, 0, shapes, Drawn(tensors), path, silent)  # type: ignore[arg-type]
    data = torch.from_numpy(np.fromfile(path, np.uint8))
    assert len(data) == 64 + copies * size
    assert not data[:64].any()

    count = (tile.end - tile.begin) // copies
    rows, cols = slice(tile.row_begin, tile.row_end), slice(tile.col_begin, tile.col_begin + tile.cols)
    for copy in range(copies):
        part = data[64 + copy * size : 64 + (copy + 1) * size]
        shape = (tile.row_end - tile.row_begin, tile.cols, tile.col_begin, tile.layout)
        for m, found in enumerate(CODECS[dtype].unpack(part, Copy(len(tile.tensors), count, *shape))):
            for name, values in zip(tile.tensors, found, strict=True):
                whole = tensors[name][tile.begin + copy * count + m]
                wanted = whole.bfloat16() if dtype == "bf16" else quantised(whole)
                assert torch.equal(values, wanted[rows, cols])


def quantised(matrix: torch.Tensor) -> torch.Tensor:
    """What is left of a matrix in e4m3, block by block."""
    out = torch.zeros_like(matrix)
    for r in range(0, matrix.shape[0], 128):
        for c in range(0, matrix.shape[1], 128):
            block = matrix[r : r + 128, c : c + 128]
            scale = block.abs().max() / 448
            out[r : r + 128, c : c + 128] = (block / scale).to(E4M3).float() * scale
    return out


def test_scales_of_zero_blocks_are_one() -> None:
    source = Quantised(FP8, lambda name, matrix, begin, end, dtype: torch.zeros(end - begin, 200), lambda name: 130)
    values, scales = source.read("w", 0, 112, 130)
    assert not values.float().any()
    assert scales.shape == (18, 2)
    assert (scales == 1).all()


def test_tile_bytes_counts_whole_blocks_and_their_scales() -> None:
    """Whole k-blocks; the scales of all panels in front, of as many blocks as columns from col_begin on meet."""
    assert BF16.tile_bytes(3, 17, 0, "fragments") == 3 * 2 * FRAGMENT_BYTES
    assert FP8.tile_bytes(1, 128, 0, "fragments") == (4 + 1) * FRAGMENT_BYTES
    assert FP8.tile_bytes(65, 128, 112, "fragments") == (65 * 4 + 2) * FRAGMENT_BYTES
    assert FP8.tile_bytes(64, 128, 0, "fragments") == (64 * 4 + 1) * FRAGMENT_BYTES
    values = torch.ones(16, 33).to(E4M3)
    assert len(pack_copy([[values, values]], [[torch.ones(16, 1)] * 2])) == FP8.tile_bytes(2, 33, 0, "fragments")


def test_fp8_tiles_that_begin_within_a_panel_are_refused(tmp_path: Path) -> None:
    tile = WeightTile(("w",), 0, 1, 8, 16, 32, layout="fragments")
    program: Any = Program({}, [], [], [], [], [PlacedTile(0, tile, 0, 0, tile.bytes("fp8"))], [], [], [4096], 0)
    shapes = {"w": Tensor("w", (1, 32, 32), "fp8", "weight")}
    with pytest.raises(InputError, match="w: a tile begins at row 8, in fp8 it must be a multiple of 16"):
        pack(program, 0, shapes, Drawn({}), tmp_path / "p", silent)  # type: ignore[arg-type]
