"""Where a step's parameters come from: `Checkpoint` reads them, `DrawnWeights` draws them, a few rows at a time.

A model's table of parameters (`ModelSpec.parameters`) gives for each its shape, and the windows of checkpoint tensors
that its matrices are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic

import torch
from torch import Tensor

from tilecompile.models.registry import spec_of
from tilecompile.models.spec import C


class Weights(ABC, Generic[C]):
    """A model's parameters, read a few rows at a time.

    `config` is the model that they make, `source` their origin in words, `notes` are remarks for the user.
    """

    def __init__(self, config: C, source: str, notes: tuple[str, ...] = ()) -> None:
        self.config, self.source, self.notes = config, source, notes
        self.spec = spec_of(config)
        self.parameters = self.spec.parameters(config)

    @abstractmethod
    def _window(self, tensor: str, shape: tuple[int, ...], rows: slice, cols: slice) -> Tensor:
        """Rows and columns of a checkpoint tensor; a 1-d tensor counts as one row."""

    def read(self, name: str, matrix: int, row_begin: int, row_end: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows `row_begin:row_end` of one matrix of a parameter, [rows, cols] and contiguous, rounded to nearest even.

        A 2-d parameter is one matrix; a 1-d one is a matrix of one row.
        """
        parameter = self.parameters[name]
        window, width = parameter.windows[matrix], parameter.shape[-1]
        if window.transposed:
            cols = slice(window.col + row_begin, window.col + row_end)
            part = self._window(window.tensor, window.shape, slice(window.row, window.row + width), cols).T
        else:
            rows = slice(window.row + row_begin, window.row + row_end)
            part = self._window(window.tensor, window.shape, rows, slice(window.col, window.col + width))
        return part.to(dtype).contiguous()

    def full(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A whole parameter in its own shape, or a table that no checkpoint holds."""
        if name in self.spec.tables:
            return self.spec.tables[name](self.config)
        parameter = self.parameters[name]
        rows = parameter.shape[-2] if len(parameter.shape) > 1 else 1
        matrices = [self.read(name, i, 0, rows, dtype) for i in range(len(parameter.windows))]
        return torch.cat(matrices).reshape(parameter.shape)
