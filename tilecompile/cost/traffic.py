"""How many bytes a step must read: the model's formula, without padding and without replication.

The compiler takes the formula from a graph and states it in engine.json (`reads` of a program), so that it can be had
from an engine alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.folder.schema import mismatch
from tilecompile.runtime.format import DTYPE_BYTES, matrix_bytes

if TYPE_CHECKING:
    from tilecompile.ir.graph import OpGraph

SCHEMA: dict[str, Any] = {"fixed": int, "caches": [{"row_bytes": int, "above": int, "rows": int}]}
"""A program's `reads` in engine.json."""


@dataclass(frozen=True)
class CacheReads:
    """What a step reads of some caches: `row_bytes` for each position, at most `rows` positions, and nothing while the
    context is not above `above` positions."""

    row_bytes: int
    above: int
    rows: int


@dataclass(frozen=True)
class Reads:
    """Distinct bytes that a step must read: `fixed` whatever the context, and those of caches."""

    fixed: int
    caches: tuple[CacheReads, ...]

    def at(self, context: int) -> int:
        """Bytes of one step at a context of `context` positions, the step's own included."""
        return self.fixed + sum(c.row_bytes * min(context, c.rows) for c in self.caches if context > c.above)

    def mean(self, contexts: Iterable[int]) -> float:
        """Bytes of a step in the mean over steps with these contexts."""
        found = [self.at(context) for context in contexts]
        return sum(found) / len(found)

    def stated(self) -> dict[str, Any]:
        """The formula as engine.json states it."""
        return {"fixed": self.fixed, "caches": [vars(c) for c in self.caches]}


def reads(graph: OpGraph, max_seq_len: int, copies: Callable[[str], int] = lambda tensor: 1) -> Reads:
    """The formula of one step of a graph whose caches hold `max_seq_len` positions.

    Streamed weights count once; stacked experts count for as many as the step has slots; a table counts the rows of the
    step's tokens; a latent cache counts the selected rows, an index cache all rows of the context, and none while the
    context is at most the selection. `copies` says for how many tensors of the whole model one of a short model stands.
    """
    total = 0
    seen: set[str] = set()
    caches: Counter[tuple[int, int]] = Counter()  # bytes a position by (above, rows)
    for node in graph.nodes:
        slots = node.inputs[_slot_operand(node.attrs)].shape[1] if node.op.startswith("expert_") else 1
        for w in node.weights:
            if w.tensor in seen:
                continue
            seen.add(w.tensor)
            *matrices, rows, cols = w.shape
            size = prod(matrices) * matrix_bytes(rows, cols, w.dtype) * copies(w.tensor)
            total += size * slots // w.shape[0] if node.op.startswith("expert_") else size
        for view in node.inputs:
            tensor = graph.tensors[view.tensor]
            row = tensor.cols * DTYPE_BYTES[tensor.dtype] * copies(view.tensor)
            if tensor.role == "constant" and view.tensor not in seen:
                seen.add(view.tensor)
                total += row * (graph.tokens if node.op == "embed" else tensor.rows)
            elif tensor.role == "cache" and node.op == "index_score":
                caches[int(node.attrs["topk"]), max_seq_len] += row
            elif tensor.role == "cache" and node.op == "mla_attention":
                caches[0, node.inputs[3].shape[1]] += row
    return Reads(total, tuple(CacheReads(size, *key) for key, size in sorted(caches.items())))


def stated_reads(manifest: Manifest, program: str = "decode") -> Reads:
    """The formula that an engine states for a step program. EngineError if it doesn't."""
    found: Any = manifest.program(program).get("reads")
    wrong = mismatch(found, SCHEMA, f"reads of program {program}")
    if wrong:
        raise EngineError(f"{manifest.path}: {wrong}; compile the model again")
    return Reads(found["fixed"], tuple(CacheReads(**{k: c[k] for k in SCHEMA["caches"][0]}) for c in found["caches"]))


def _slot_operand(attrs: dict[str, Any]) -> int:
    """Input number of an expert op's slot table: after x and the weight of a folded norm."""
    return 1 + (attrs.get("norm") is not None)
