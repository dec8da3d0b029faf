"""Which regions boxes cover, compared with sets of elements."""

from __future__ import annotations

import numpy as np

from tilecompile.runtime import format as fmt
from tilecompile.verify.base import covered, uncovered


def test_a_region_is_covered_if_every_element_is_in_a_box() -> None:
    """A region is covered exactly if every element is in some box, of boxes that are apart and of others."""
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        boxes = drawn(rng, int(rng.integers(0, 5)), 3)
        regions = drawn(rng, 4, 5)
        regions[3] = regions[0]
        among = rng.random((4, len(boxes))) < 0.8
        elements = [cells(boxes[some]) for some in among]
        wrong = [i for i in range(4) if (cells(regions[i : i + 1]) & ~elements[i]).any()]
        assert [i for i in range(4) if not covered(regions[i], boxes[among[i]])] == wrong
        found = uncovered(regions, boxes, among).tolist()
        assert found == [i for i in wrong if i < 3 or 0 not in wrong or (among[0] != among[3]).any()]
        apart = sum(int(cells(boxes[i : i + 1]).sum()) for i in range(len(boxes))) == int(cells(boxes).sum())
        seen |= {(apart, i in wrong) for i in range(4)}
    assert len(seen) == 4


def drawn(rng: np.random.Generator, count: int, most: int) -> np.ndarray:
    """Small regions that touch something."""
    found = np.zeros(count, fmt.REGION.dtype)
    for a, b in (("row_begin", "row_end"), ("col_begin", "col_end")):
        found[a] = rng.integers(0, most, count)
        found[b] = found[a] + rng.integers(1, 4, count)
    return found


def cells(boxes: np.ndarray) -> np.ndarray:
    """bool [8, 8]: the elements that boxes touch."""
    found = np.zeros((8, 8), bool)
    for b in boxes:
        found[b["row_begin"] : b["row_end"], b["col_begin"] : b["col_end"]] = True
    return found
