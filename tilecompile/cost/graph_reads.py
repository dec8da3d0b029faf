"""The bytes that a step must read, as a formula, from its operator graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod

from tilecompile.cost.traffic import CacheReads, Reads
from tilecompile.ir.graph import OpGraph
from tilecompile.ops.base import NO_ROWS, TraitError, cache_reads, op_of
from tilecompile.runtime.format import DTYPE_BYTES
from tilecompile.runtime.weight_formats import FORMATS


def reads(graph: OpGraph, max_seq_len: int, copies: Callable[[int | None], int] = lambda layer: 1) -> Reads:
    """The formula of one step of a graph whose caches hold `max_seq_len` positions.

    Streamed weights count once; stacked ones that slots choose from count for as many as the step has slots; of caches
    and tables the rows count that the ops say (`TileOp.reads`), of other constants all. `copies` says for how many
    layers of the whole model one of a short model stands.
    """
    total = 0
    seen: set[str] = set()
    caches: Counter[tuple[int, int]] = Counter()  # bytes a position by (above, rows)
    for node in graph.nodes:
        op = op_of(node)
        slots = op.slots(node).shape[1] if op.slots else None
        for w in node.weights:
            if w.tensor in seen:
                continue
            seen.add(w.tensor)
            *matrices, rows, cols = w.shape
            size = prod(matrices) * FORMATS[w.dtype].matrix_bytes(rows, cols) * copies(graph.tensors[w.tensor].layer)
            total += size if slots is None else size * slots // w.shape[0]
        stated = cache_reads(node, graph.caches(node))
        for i, view in enumerate(node.inputs):
            tensor = graph.tensors[view.tensor]
            row = tensor.cols * DTYPE_BYTES[tensor.dtype] * copies(tensor.layer)
            taken = stated.get(i)
            if taken == NO_ROWS:
                continue
            if taken is not None and (taken.first or taken.of_context != (tensor.role == "cache")):
                raise TraitError(f"tile op {node.op} reads rows of input {i} that no formula of a step states: {taken}")
            if tensor.role == "constant" and view.tensor not in seen:
                seen.add(view.tensor)
                total += row * (tensor.rows if taken is None else taken.at(1))
            elif tensor.role == "cache" and taken is not None:
                most = max_seq_len if taken.most is None else taken.most
                caches[taken.above, most] += row * prod(view.shape[1:]) // tensor.cols
    return Reads(total, tuple(CacheReads(size, *key) for key, size in sorted(caches.items())))
