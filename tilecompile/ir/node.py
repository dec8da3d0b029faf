"""An operator of a graph, and how it sees the tensors that it works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tilecompile.runtime.names import OP


@dataclass(frozen=True)
class View:
    """How an operator sees a tensor: a strided window (in elements) of the tensor's own memory.

    Dimension 0 is always dimension 0 of the tensor (tokens, or rows of a cache); views never cross it.
    """

    tensor: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    dtype: str

    @staticmethod
    def of(tensor: str, shape: Sequence[int], dtype: str) -> View:
        """The view of a whole contiguous tensor."""
        strides, step = [], 1
        for size in reversed(shape):
            strides.append(step)
            step *= size
        return View(tensor, tuple(shape), tuple(reversed(strides)), 0, dtype)

    def narrow(self, axis: int, begin: int, end: int) -> View:
        """The window begin:end of one dimension."""
        shape = (*self.shape[:axis], end - begin, *self.shape[axis + 1 :])
        return View(self.tensor, shape, self.strides, self.offset + begin * self.strides[axis], self.dtype)

    def select(self, axis: int, index: int) -> View:
        """The view at index `index` of a dimension, without that dimension."""
        offset = self.offset + index * self.strides[axis]
        keep = [i for i in range(len(self.shape)) if i != axis]
        shape, strides = (tuple(values[i] for i in keep) for values in (self.shape, self.strides))
        return View(self.tensor, shape, strides, offset, self.dtype)

    def swapped(self, first: int, second: int) -> View:
        """The view with two dimensions exchanged."""
        order = list(range(len(self.shape)))
        order[first], order[second] = second, first
        shape, strides = (tuple(values[i] for i in order) for values in (self.shape, self.strides))
        return View(self.tensor, shape, strides, self.offset, self.dtype)

    def of_tensor(self, tensor: str) -> View:
        """The same window of another tensor of the same shape."""
        return View(tensor, self.shape, self.strides, self.offset, self.dtype)

    @property
    def columns(self) -> tuple[int, int]:
        """The columns (begin, end) of the tensor's [rows, cols] matrix that hold the window."""
        inner = zip(self.shape[1:], self.strides[1:], strict=True)
        return self.offset, self.offset + sum((n - 1) * s for n, s in inner) + 1

    @property
    def runs(self) -> list[tuple[int, int]]:
        """The columns that hold the window as intervals, without the gaps between elements of dimension 1."""
        if len(self.shape) < 3 or self.narrow(1, 0, 1).columns[1] - self.offset >= self.strides[1]:
            return [self.columns]
        return [self.narrow(1, i, i + 1).columns for i in range(self.shape[1])]

    def __str__(self) -> str:
        text = f"{self.tensor}[{','.join(map(str, self.shape))}]{self.dtype}"
        contiguous = View.of(self.tensor, self.shape, self.dtype)
        return text if contiguous == self else f"{text} strides {self.strides} offset {self.offset}"


@dataclass(frozen=True)
class OpNode:
    """One operator of the graph: tile op, operands, attributes, where in the model it comes from, and its device.

    `name` is for people. `origin` is the name of the operator of the undivided graph that this one does a part of, ""
    for that operator itself and for exchanges of what the controller writes; `role` is one of `runtime.names.ROLES`,
    `peer` the device that a push writes to. `layer` is the layer of the model, None outside the layers; `family` is the
    same for corresponding operators of all layers, and of no use once a placement is chosen: graph.json lacks it.
    """

    name: str
    op: str
    inputs: tuple[View, ...]
    weights: tuple[View, ...]
    outputs: tuple[View, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    layer: int | None = None
    device: int = 0
    origin: str = ""
    role: str = OP
    peer: int | None = None
    family: str = field(default="", compare=False)

    @property
    def operands(self) -> tuple[View, ...]:
        """Operands in the order in which bodies number them: inputs, then outputs."""
        return self.inputs + self.outputs

    @property
    def undivided(self) -> str:
        """The name of the operator of the undivided graph."""
        return self.origin or self.name

    @property
    def predicate(self) -> dict[str, Any]:
        """The attribute by which the operator runs only in steps that need logits; empty if it has none."""
        return {"predicate": self.attrs["predicate"]} if self.attrs.get("predicate") else {}
