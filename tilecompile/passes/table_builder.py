"""The tables of a program while they grow: rows by the names of their fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.format import TABLES, Record


class Rows:
    """The rows of one table so far; its length is their number. `columns` has the values of each field.

    A field is given with every row or with none; what is never given is 0.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._count = 0
        self.columns: dict[str, list[Any]] = {field.name: [] for field in record.fields}

    def __len__(self) -> int:
        return self._count

    def append(self, /, **values: Any) -> int:
        """Adds a row and returns its number. KeyError for a field that the record doesn't have."""
        for field, value in values.items():
            self.columns[field].append(value)
        self._count += 1
        return self._count - 1

    def extend(self, count: int, /, **values: Sequence[Any]) -> int:
        """Adds `count` rows and returns the number of the first one; `values` has `count` values for each field."""
        for field, column in values.items():
            self.columns[field].extend(column)
        self._count += count
        return self._count - count

    def array(self) -> npt.NDArray[np.void]:
        """The table. ValueError for a field that was given with some rows only."""
        out = np.zeros(self._count, self._record.dtype)
        for field, column in self.columns.items():
            if column and len(column) != self._count:
                raise ValueError(f"{self._record.name}: {len(column)} values of {field} for {self._count} rows")
            if column:
                out[field] = column
        return out


class TableBuilder:
    """The rows of all tables of a program (format.TABLES), by name."""

    def __init__(self) -> None:
        self._rows = {name: Rows(record) for name, record in TABLES.items()}

    def __getitem__(self, name: str) -> Rows:
        return self._rows[name]

    def arrays(self) -> dict[str, npt.NDArray[np.void]]:
        """All tables, by name."""
        return {name: rows.array() for name, rows in self._rows.items()}
