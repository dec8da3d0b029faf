"""Where a step's parameters come from: `Checkpoint` reads them, `DrawnWeights` draws them, a few rows at a time.

A model's table of parameters (`ModelSpec.parameters`) gives for each its shape, and the windows of checkpoint tensors
that its matrices are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import isfinite
from typing import Generic

import torch
from torch import Tensor

from tilecompile.models.registry import spec_of
from tilecompile.models.spec import C, Window
from tilecompile.runtime.errors import InputError


class Weights(ABC, Generic[C]):
    """A model's parameters, read a few rows at a time.

    `config` is the model that they make, `source` their origin in words, `notes` are remarks for the user. `stored`
    counts the numbers of matrices by the form in which they are stored, `states_type` is the type that the source's own
    configuration states. With `finite` numbers that aren't finite are errors.
    """

    def __init__(self, config: C, source: str, notes: tuple[str, ...] = (), finite: bool = False) -> None:
        self.config, self.source, self.notes, self.finite = config, source, notes, finite
        self.stored: dict[str, int] = {}
        self.states_type: object = None
        self.spec = spec_of(config)
        self.parameters = self.spec.parameters(config)

    @abstractmethod
    def _window(self, tensor: str, shape: tuple[int, ...], rows: slice, cols: slice) -> Tensor:
        """Rows and columns of a checkpoint tensor; a 1-d tensor counts as one row."""

    def read(self, name: str, matrix: int, row_begin: int, row_end: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows `row_begin:row_end` of one matrix of a parameter, [rows, cols] and contiguous, rounded to nearest even.

        A 2-d parameter is one matrix; a 1-d one is a matrix of one row. InputError for a number that isn't finite,
        where those are errors.
        """
        parameter = self.parameters[name]
        window, width = parameter.windows[matrix], parameter.shape[-1]
        if window.transposed:
            cols = slice(window.col + row_begin, window.col + row_end)
            part = self._window(window.tensor, window.shape, slice(window.row, window.row + width), cols).T
        else:
            rows = slice(window.row + row_begin, window.row + row_end)
            part = self._window(window.tensor, window.shape, rows, slice(window.col, window.col + width))
        found = part.to(dtype).contiguous()
        if self.finite and not bool(found.sum(dtype=torch.float32).isfinite()):
            self._check_finite(found, part, window, row_begin)
        return found

    def _check_finite(self, found: Tensor, part: Tensor, window: Window, row_begin: int) -> None:
        """InputError that names the first number in rows from `row_begin` on of a matrix that isn't finite."""
        wrong = (~found.isfinite()).nonzero()
        if not len(wrong):
            return  # only their sum was too large
        row, col = wrong[0].tolist()
        value = float(part[row, col])
        row, col = (col, row + row_begin) if window.transposed else (row + row_begin, col)
        at = f"{window.row + row}, {window.col + col}" if len(window.shape) > 1 else f"{window.col + col}"
        words = f"is {value:g}" + (f", which {found.dtype} can't hold".replace("torch.", "") if isfinite(value) else "")
        raise InputError(
            f"{self.source}: {window.tensor}[{at}] {words}; want finite numbers (--allow-nan compiles them as they are)"
        )

    def full(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A whole parameter in its own shape, or a table that no checkpoint holds."""
        if name in self.spec.tables:
            return self.spec.tables[name](self.config)
        parameter = self.parameters[name]
        rows = parameter.shape[-2] if len(parameter.shape) > 1 else 1
        matrices = [self.read(name, i, 0, rows, dtype) for i in range(len(parameter.windows))]
        return torch.cat(matrices).reshape(parameter.shape)
