"""Tables that grow by rows: fields by name, numbers of rows, defaults, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from tilecompile.passes.table_builder import Rows, TableBuilder
from tilecompile.runtime.format import INSTRUCTION, TABLES, WAIT


def test_rows_are_numbered_and_have_their_fields() -> None:
    rows = Rows(WAIT)
    assert rows.append(event=3, count=1) == 0
    assert rows.extend(2, event=[4, 5], count=[6, 7]) == 1
    assert rows.extend(0, event=[], count=[]) == 3
    assert rows.append(count=9, event=8) == 3
    assert len(rows) == 4
    assert rows.array().dtype == WAIT.dtype
    assert rows.array().tolist() == [(3, 1), (4, 6), (5, 7), (8, 9)]


def test_columns_can_be_altered() -> None:
    rows = Rows(WAIT)
    rows.extend(2, event=[1, 2], count=[3, 4])
    rows.columns["count"][0] = 7
    assert rows.array()["count"].tolist() == [7, 4]


def test_fields_that_are_never_given_are_0() -> None:
    rows = Rows(INSTRUCTION)
    rows.append(op=2, tile=(1, -2, 3, 4))
    want = np.zeros(1, INSTRUCTION.dtype)
    want["op"], want["tile"] = 2, (1, -2, 3, 4)
    assert rows.array().tobytes() == want.tobytes()


def test_fields_that_are_wrong_are_refused() -> None:
    rows = Rows(WAIT)
    with pytest.raises(KeyError, match="events"):
        rows.append(events=1, count=1)
    rows = Rows(WAIT)
    rows.append(event=1, count=1)
    rows.append(event=1)
    with pytest.raises(ValueError, match=r"^Wait: 1 values of count for 2 rows$"):
        rows.array()
    rows = Rows(WAIT)
    rows.extend(2, event=[1, 2, 3], count=[1, 2])
    with pytest.raises(ValueError, match=r"^Wait: 3 values of event for 2 rows$"):
        rows.array()


def test_all_tables_are_there() -> None:
    builder = TableBuilder()
    builder["waits"].append(event=1, count=2)
    arrays = builder.arrays()
    assert {name: table.dtype for name, table in arrays.items()} == {n: r.dtype for n, r in TABLES.items()}
    assert {name: len(table) for name, table in arrays.items()} == {name: int(name == "waits") for name in TABLES}
