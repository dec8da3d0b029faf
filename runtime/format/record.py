"""Fields and records: the layout of one row of a table, in numpy and in C."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Field:
    """One field: numpy type string (optionally with a count), and what it means, with its unit."""

    name: str
    type: str
    meaning: str
    count: int = 1


@dataclass(frozen=True)
class Record:
    """One record: its name in C, its size in bytes, its fields in order."""

    name: str
    size: int
    fields: tuple[Field, ...]

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The numpy dtype of the record, with the C compiler's natural alignment."""
        spec = [(f.name, "<" + f.type, (f.count,)) if f.count > 1 else (f.name, "<" + f.type) for f in self.fields]
        dtype = np.dtype(spec, align=True)
        if dtype.itemsize != self.size:
            raise AssertionError(f"{self.name} is {dtype.itemsize} bytes, stated {self.size}")
        return dtype
