"""Ranges of entries, expanded: against plain loops in Python."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilecompile.runtime.folder import rows
from tilecompile.runtime.folder.tables import Table
from tilecompile.runtime.format import INSTRUCTION

SIZE = 20
"""Rows of the table that is referred to."""

Spans = list[tuple[int, int]]

spans = st.lists(
    st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda ends: (min(ends), max(ends))), max_size=12
)
"""(begin, end) of each row's entries."""


def instructions(found: Spans, field: str) -> Table:
    """Instructions that refer to these entries of one table."""
    out = np.zeros(len(found), INSTRUCTION.dtype)
    out[f"{field}_begin"] = [begin for begin, _ in found]
    out[f"{field}_count"] = [end - begin for begin, end in found]
    return out


@given(spans, st.sampled_from(sorted(rows.SPANS)))
def test_entries_are_those_of_each_row_with_their_owner(found: Spans, field: str) -> None:
    entry, owner = rows.entries(instructions(found, field), field)
    assert (entry.dtype, owner.dtype) == (np.int64, np.int64)
    want = [(e, i) for i, (begin, end) in enumerate(found) for e in range(begin, end)]
    assert list(zip(entry.tolist(), owner.tolist(), strict=True)) == want


@given(spans)
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_expanded_and_owners_for_any_integers(dtype: type[np.integer], found: Spans) -> None:
    begin, end = (np.array([span[k] for span in found], dtype) for k in range(2))
    assert rows.expanded(begin, end - begin).tolist() == [e for b, t in found for e in range(b, t)]
    assert rows.expanded(3, end - begin).tolist() == [3 + k for b, t in found for k in range(t - b)]
    assert rows.owners(end - begin).tolist() == [i for i, (b, t) in enumerate(found) for _ in range(b, t)]


@given(spans)
def test_offsets_are_places_among_all_entries(found: Spans) -> None:
    table = instructions(found, "wait")
    entry, _ = rows.entries(table, "wait")
    begin = rows.offsets(table["wait_count"])
    assert begin.dtype == np.int64
    assert begin[-1] == len(entry)
    for i, row in enumerate(table):
        assert np.array_equal(entry[begin[i] : begin[i + 1]], np.arange(SIZE)[rows.span(row, "wait")])


@given(spans, st.data())
def test_sums_of_each_rows_entries(found: Spans, data: st.DataObject) -> None:
    whole = st.lists(st.integers(-100, 100), min_size=SIZE, max_size=SIZE)
    values = np.array(data.draw(whole), np.int64)
    table = instructions(found, "tape")
    for some in (values, values > 0, values.astype(np.float64)):
        got = rows.sums(some, table, "tape")
        assert got.dtype == (np.float64 if some.dtype == np.float64 else np.int64)
        assert got.tolist() == [sum(some[begin:end].tolist()) for begin, end in found]
    begin, end = (np.array([span[k] for span in found], np.uint32) for k in range(2))
    assert np.array_equal(rows.range_sums(values, begin, end), rows.sums(values, table, "tape"))


@given(st.lists(st.integers(0, 3), max_size=12), st.randoms(use_true_random=False))
def test_referrers_invert_entries(counts: list[int], random: Random) -> None:
    """Each entry is of one row, whatever the order of the rows."""
    ends = np.cumsum(counts, dtype=np.int64)
    found = [(int(end) - count, int(end)) for count, end in zip(counts, ends.tolist(), strict=True)]
    random.shuffle(found)
    table = instructions(found, "notify")
    entry, owner = rows.entries(table, "notify")
    got = rows.referrers(table, "notify")
    assert len(got) == sum(counts)
    assert np.array_equal(got[entry], owner)


def test_referrers_of_entries_that_no_row_names_are_0() -> None:
    assert rows.referrers(instructions([(0, 1), (4, 6)], "wait"), "wait").tolist() == [0, 0, 0, 0, 1, 1]
    assert rows.referrers(instructions([], "wait"), "wait").tolist() == []
