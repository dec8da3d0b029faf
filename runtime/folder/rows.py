"""Rows of one table that refer to ranges of another's: `begin` and `count` of entries, expanded to the entries.

All functions take arrays of any integer type and return int64. Entries come one row after the other, in the order of
the rows; a row may have none, and rows may share entries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Rows = npt.NDArray[np.void]

SPANS = {"operand": "operands", "wait": "waits", "notify": "notifies", "tape": "tape", "region": "regions"}
"""What an instruction refers to, by the fields `…_begin` and `…_count`, and in which table it is."""


def owners(count: npt.ArrayLike) -> Ints:
    """The row of each entry: row i count[i] times."""
    return np.repeat(np.arange(np.size(count)), np.asarray(count, np.int64))


def offsets(count: npt.ArrayLike) -> Ints:
    """Where each row's entries begin in an array of all entries, and where the last row's end: [rows + 1]."""
    return np.append(0, np.cumsum(np.asarray(count, np.int64)))


def expanded(begin: npt.ArrayLike, count: npt.ArrayLike) -> Ints:
    """The entries of all rows: begin[0], begin[0] + 1, … (count[0] of them), begin[1], …; one `begin` may serve all."""
    many = np.asarray(count, np.int64)
    starts = np.asarray(begin, np.int64) - offsets(many)[:-1]
    return np.arange(int(many.sum())) + np.repeat(starts, many)


def entries(rows: Rows, field: str) -> tuple[Ints, Ints]:
    """The entries that the fields `…_begin` and `…_count` of rows name, and of each entry the row that names it."""
    count = rows[f"{field}_count"]
    return expanded(rows[f"{field}_begin"], count), owners(count)


def referrers(rows: Rows, field: str) -> Ints:
    """The row that names each entry, for entries that are of one row each; 0 where none does. Up to the last named."""
    entry, owner = entries(rows, field)
    found = np.zeros(int(entry.max(initial=-1)) + 1, np.int64)
    found[entry] = owner
    return found


def span(row: np.void, field: str) -> slice:
    """The entries of one row, as a slice of their table."""
    begin = int(row[f"{field}_begin"])
    return slice(begin, begin + int(row[f"{field}_count"]))


def sums(values: npt.NDArray[Any], rows: Rows, field: str) -> npt.NDArray[Any]:
    """The sum of each row's entries, where `values` has a value for each entry of the table.

    Sums are int64 for booleans and int64, and of the values' type for floats.
    """
    begin = rows[f"{field}_begin"].astype(np.int64)
    return range_sums(values, begin, begin + rows[f"{field}_count"])


def range_sums(
    values: npt.NDArray[Any], begin: npt.NDArray[np.integer[Any]], end: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[Any]:
    """The sums of values[begin[i]:end[i]], as differences of a running sum; types are those of `sums`."""
    running = np.append(0, np.cumsum(values))
    return np.asarray(running[end] - running[begin])
