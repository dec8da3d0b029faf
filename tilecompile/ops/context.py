"""Blocks of the context on several devices: which positions of a sequence a device's caches hold, and where.

Positions are divided into blocks, and blocks are assigned cyclically: block b is on device b mod `count`. So every
context is spread evenly, to a block, and a device's rows are stored in the order of their positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tilecompile.ir.node import OpNode
from tilecompile.ir.placement import Split


@dataclass(frozen=True)
class Context:
    """The positions of shard `index` of `count`, in blocks of `block`."""

    index: int
    count: int
    block: int

    @staticmethod
    def of(node: OpNode) -> Context | None:
        """`attrs["context"]` = (index, count, block) of a node; None for an operator that has all positions."""
        stated = node.attrs.get("context")
        return None if stated is None else Context(*stated)

    def rows(self, positions: int) -> int:
        """How many of the first `positions` positions belong to the shard; they are in its first rows."""
        cycles, rest = divmod(positions, self.count * self.block)
        return cycles * self.block + min(max(rest - self.index * self.block, 0), self.block)

    def position(self, row: int) -> int:
        """The position that a row holds."""
        return (row // self.block * self.count + self.index) * self.block + row % self.block

    def cpp(self) -> str:
        """The C++ value; coordinate 3 of a task says which shard."""
        return f"Context<{self.count}, {self.block}>{{c.tile(3)}}"


def parts_of(node: OpNode, split: Split) -> Iterator[tuple[int, Context, OpNode]]:
    """For an operator divided by context: each device, its shard of the context, and the operator on that shard."""
    for i, part in enumerate(split.parts):
        context = Context(i, len(split.parts), split.block)
        attrs = {**node.attrs, "context": (i, context.count, context.block)}
        yield part.device, context, replace(node, origin=node.undivided, attrs=attrs)


def is_part(node: OpNode) -> bool:
    """Whether an attention's result is a part of the softmax's, for `attention_merge`."""
    return Context.of(node) is not None or bool(node.attrs.get("part"))


def rows_of(node: OpNode, positions: int) -> int:
    """How many of the first `positions` positions the caches of an operator hold."""
    context = Context.of(node)
    return positions if context is None else context.rows(positions)


def cpp_context(node: OpNode) -> str:
    """The C++ value of an operator's shard of the context."""
    context = Context.of(node)
    return "Context<1, 1>{0}" if context is None else context.cpp()


def rows_expr(positions: Any, index: Any, count: int, block: int) -> Any:
    """`Context.rows` as a TileLang expression, of shard `index`."""
    import tilelang.language as T

    if count == 1:
        return positions
    rest = T.truncmod(positions, count * block) - index * block
    return T.truncdiv(positions, count * block) * block + T.min(T.max(rest, 0), block)


def position_expr(row: Any, index: Any, count: int, block: int) -> Any:
    """`Context.position` as a TileLang expression, of shard `index`."""
    import tilelang.language as T

    if count == 1:
        return row
    return (T.truncdiv(row, block) * count + index) * block + T.truncmod(row, block)
