"""nvfp4: numbers and scales by the format's definition, one at a time, and tiles that hold them."""

from __future__ import annotations

import pytest
import torch

from tilecompile.errors import InputError
from tilecompile.ir.tiling import WeightTile
from tilecompile.runtime.weight_formats import NVFP4, ROWS
from tilecompile.targets.codec import Copy
from tilecompile.targets.nvfp4 import Nvfp4, matrix_scale, quantise

NUMBERS = sorted({sign * x for x in (0, 0.5, 1, 1.5, 2, 3, 4, 6) for sign in (1, -1)})


def e4m3(code: int) -> float:
    """A scale by its code, from the bits."""
    exponent, mantissa = code >> 3 & 15, code & 7
    return (mantissa / 8) * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)


@pytest.mark.parametrize("seed", range(3))
def test_every_number_is_the_nearest_and_every_scale_fits_its_block(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(5, 37, generator=generator) * torch.exp2(torch.randint(-9, 9, (5, 37), generator=generator))
    found = quantise(values, matrix_scale(values))
    assert found.scale == pytest.approx(float(values.abs().max()) / (6 * 448))
    decoded = found.values.double().numpy()
    for r in range(5):
        for block in range(3):
            columns = range(16 * block, min(16 * block + 16, 37))
            scale = e4m3(int(found.scales.view(torch.uint8)[r, block])) * found.scale
            most = max(abs(float(values[r, c])) for c in columns)
            assert abs(scale - most / 6) <= most / 6 / 16 + 2.0**-10 * found.scale
            for c in columns:
                near = min(abs(n * scale - float(values[r, c])) for n in NUMBERS)
                assert abs(decoded[r, c] - float(values[r, c])) <= near + 1e-6 * most


def test_zeros_and_blocks_too_small_for_a_scale_are_zeros() -> None:
    values = torch.zeros(16, 48)
    assert matrix_scale(values) == 1.0
    assert not quantise(values, 1.0).values.any()
    values[0, 0], values[3, 20] = 1.0, 1e-9
    found = quantise(values, matrix_scale(values)).values
    assert float(found[0, 0]) == pytest.approx(1.0, rel=1e-6)
    assert int(found.count_nonzero()) == 1


@pytest.mark.parametrize(
    ("rows", "cols", "count", "tensors"), [(16, 64, 1, 1), (37, 131, 1, 2), (50, 16, 3, 1), (5, 9, 2, 2)]
)
def test_tiles_hold_the_matrices(rows: int, cols: int, count: int, tensors: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    whole = {f"w{i}": torch.randn(count, rows, cols, generator=generator) for i in range(tensors)}
    packer = Nvfp4().packer(lambda name, m, a, b, t: whole[name][m, a:b].to(t), lambda name: rows)
    for gathered in (False, True):
        tile = WeightTile(tuple(whole), 0, count, 0, rows, cols, gathered=gathered)
        data = packer(tile, range(count))
        each = 1 if gathered else count
        assert len(data) == tile.bytes("nvfp4") * (count // each)
        for first, part in zip(range(0, count, each), data.view(count // each, -1), strict=True):
            found = Nvfp4().unpack(part, Copy(tensors, each, rows, cols, 0, ROWS))
            for m, matrices in enumerate(found):
                for name, got in zip(whole, matrices, strict=True):
                    matrix = whole[name][first + m]
                    assert torch.equal(got, quantise(matrix, matrix_scale(matrix)).values)


def test_a_cut_changes_neither_numbers_nor_scales() -> None:
    whole = torch.randn(64, 96, generator=torch.Generator().manual_seed(1))
    want = quantise(whole, matrix_scale(whole)).values
    packer = Nvfp4().packer(lambda name, m, a, b, t: whole[a:b].to(t), lambda name: 64)
    tile = WeightTile(("w",), 0, 1, 16, 40, 48, col_begin=32)
    ((got,),) = Nvfp4().unpack(packer(tile, range(1)), Copy(1, 1, 24, 48, 32, ROWS))
    assert torch.equal(got, want[16:40, 32:80])
    for wrong, words in (
        (WeightTile(("w",), 0, 1, 8, 40, 48), "w: a tile begins at row 8, in nvfp4 it must be a multiple of 16"),
        (WeightTile(("w",), 0, 1, 0, 40, 48, col_begin=8), "begins at column 8, in nvfp4 it must be a multiple of 16"),
    ):
        with pytest.raises(InputError, match=words):
            packer(wrong, range(1))


def test_the_table_says_what_the_format_is() -> None:
    assert (NVFP4.bits, NVFP4.block, NVFP4.scale, NVFP4.matrix_scale, NVFP4.exact) == (
        4,
        (1, 16),
        "e4m3",
        "f32",
        "bf16",
    )
    assert NVFP4.matrix_bytes(3, 33) == 3 * 17 + 3 * 3 + 4
