"""Sizes that the table of weight formats gives, against a count of every number and every scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.four_bits import INT4
from tilecompile.runtime import weight_formats
from tilecompile.runtime.format import FRAGMENT_BYTES, LAYOUTS, PANEL
from tilecompile.runtime.weight_formats import BF16, F32, FORMATS, FP8, FRAGMENTS, ROWS, WeightFormat, format_of

NVFP4 = replace(INT4, name="nvfp4", code=10, block=(1, 16), matrix_scale="f32")
ALL = (F32, BF16, FP8, INT4, NVFP4)


def met(stored: WeightFormat, rows: range, cols: range) -> int:
    """Blocks that some rows and columns of a matrix meet."""
    if stored.block == (0, 0):
        return 0
    return len({r // stored.block[0] for r in rows}) * len({c // stored.block[1] for c in cols})


@given(st.sampled_from(ALL), st.integers(1, 300), st.integers(1, 300))
def test_matrix_bytes_count_numbers_and_scales(stored: WeightFormat, rows: int, cols: int) -> None:
    numbers = rows * -(-cols * stored.bits // 8)
    assert stored.number_bytes(rows, cols) == numbers
    scales = met(stored, range(rows), range(cols)) * {"f32": 4, "e4m3": 1}[stored.scale]
    assert stored.matrix_bytes(rows, cols) == numbers + scales + 4 * (stored is NVFP4)


@given(st.sampled_from(ALL[1:]), st.integers(0, 20), st.integers(1, 9), st.integers(0, 200), st.integers(1, 300))
def test_tile_bytes_in_fragments_are_whole_blocks_behind_all_scales(
    stored: WeightFormat, first: int, panels: int, col_begin: int, cols: int
) -> None:
    each = FRAGMENT_BYTES * 8 // (PANEL * stored.bits)
    size = 0
    for panel in range(first, first + panels):
        found = met(stored, range(panel * PANEL, (panel + 1) * PANEL), range(col_begin, col_begin + cols))
        size += found * {"f32": 4, "e4m3": 1}[stored.scale] + 4 * (stored is NVFP4)
    head = -(-size // FRAGMENT_BYTES) * FRAGMENT_BYTES
    assert stored.scale_bytes(panels, cols, col_begin) == size
    assert stored.head_bytes(panels, cols, col_begin) == head
    assert stored.tile_bytes(panels, cols, col_begin, FRAGMENTS) == head + panels * -(-cols // each) * FRAGMENT_BYTES


def test_tile_bytes_in_rows_are_whole_lines_behind_all_scales() -> None:
    assert F32.tile_bytes(3, 21, 5, ROWS) == 3 * 16 * 21 * 4
    assert BF16.tile_bytes(3, 21, 5, ROWS) == 3 * 16 * 21 * 2
    assert FP8.tile_bytes(3, 130, 0, ROWS) == 64 + 3 * 16 * 132
    assert FP8.tile_bytes(6, 256, 64, ROWS) == 128 + 6 * 16 * 256
    assert INT4.tile_bytes(3, 33, 0, ROWS) == 128 + 3 * 8 * 40
    assert NVFP4.tile_bytes(1, 16, 0, ROWS) == 64 + 8 * 16


def test_counts_of_many_tiles_at_once_are_those_of_each() -> None:
    panels, cols, begin = np.array([1, 5, 9]), np.array([7, 128, 300]), np.array([0, 112, 33])
    for stored in ALL:
        many = stored.head_bytes(panels, cols, begin)
        assert many.tolist() == [stored.head_bytes(*map(int, one)) for one in zip(panels, cols, begin, strict=True)]


def test_codes_and_layouts_are_those_of_the_tables() -> None:
    assert {name: stored.code for name, stored in FORMATS.items()} == {"f32": 0, "bf16": 1, "fp8": 3}
    assert [format_of(code) for code in (0, 1, 3)] == [F32, BF16, FP8]
    with pytest.raises(KeyError):
        format_of(2)
    assert {layout for stored in FORMATS.values() for layout in stored.layouts} == set(LAYOUTS)
    assert all(FORMATS[stored.exact].exact == stored.exact for stored in FORMATS.values())
    for taken in (F32, replace(F32, name="other")):
        with pytest.raises(ValueError, match=r"\(code 0\) is registered twice"):
            weight_formats.register(taken)
