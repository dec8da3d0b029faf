"""Shares: the ways in which recipes divide a model's operators, and the forms of a sum over devices.

Heads and intermediate rows are divided after Megatron-LM (arXiv 1909.08053): the projections into them by rows, those
out of them by columns, whose results are partial sums. Shares are nearly equal; nothing is padded. Which operators
these are follows from the graph and from the axes that the ops state, not from names.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet

from tilecompile.ir.graph import OpGraph
from tilecompile.ir.node import OpNode, View
from tilecompile.ir.placement import Split
from tilecompile.ops.base import TraitError, op_of, reads_context

HEADS, ROWS, COLS = "heads", "rows", "cols"
"""Axes that recipes divide along: heads, or for grouped heads groups of them; rows and columns of a weight."""

HOP_BYTES = 900_000
"""Bytes that a device pushes in the time of one more hop: 2 µs at 450 GB/s, as machines/h200x8.toml assumes them."""


def attentions(graph: OpGraph) -> Iterator[OpNode]:
    """The operators that read the context from a cache and can be divided by heads.

    TraitError for one that states no way to divide it: every device would do all of its work, without a word.
    """
    for node in graph.nodes:
        if not reads_context(node, graph.caches(node)):
            continue
        op = op_of(node)
        if HEADS in op.split_axes:
            yield node
        elif op.context_rule is None:
            raise TraitError(f"tile op {op.name} reads a cache and states no way to divide it (`split_axes`)")


def by_heads(graph: OpGraph, devices: tuple[int, ...]) -> dict[str, Split]:
    """Splits of the operators that work on attention heads. That of the last projection has no `adds` yet.

    From each attention on: its query back to the projection that makes it, and its result on to the projection that
    takes it. With fewer heads than devices the last devices have none.
    """
    producer, consumers = graph.producer(), graph.consumers()
    splits: dict[str, Split] = {}
    for attention in attentions(graph):
        axis = op_of(attention).split_axes[HEADS]
        heads, unit = axis.extent(attention), axis.unit(attention)

        def split(axis: str, size: int, heads: int = heads, unit: int = unit) -> Split:
            return Split.shared(axis, heads // unit, devices, size // (heads // unit))

        splits[attention.name] = split(HEADS, heads)
        queries = [attention.inputs[i] for i in axis.inputs if i not in graph.caches(attention)]
        while queries:
            made = producer.get(queries.pop().tensor)
            if made is None or made.name in splits:
                continue
            if _of_heads(made, heads):
                splits[made.name] = split(HEADS, heads)
                queries.append(made.inputs[0])
            elif ROWS in op_of(made).split_axes and made.weights[0].shape[-2] % heads == 0:
                splits[made.name] = split(ROWS, made.weights[0].shape[-2])
        results = list(attention.outputs)
        while results:
            result = results.pop()
            for reader in consumers[result.tensor]:
                if reader.inputs[0].tensor != result.tensor:
                    continue
                if _of_heads(reader, heads):
                    splits[reader.name] = split(HEADS, heads)
                    results += reader.outputs
                elif takes_cols(reader) and reader.weights[0].shape[-1] % heads == 0:
                    splits[reader.name] = split(COLS, reader.weights[0].shape[-1])
    return splits


def query_projections(graph: OpGraph, heads: dict[str, Split]) -> set[str]:
    """The operators whose results the queries of all heads are made from."""
    producer = graph.producer()
    by_rows = [n for n in graph.nodes if n.name in heads and heads[n.name].axis == ROWS]
    return {producer[n.inputs[0].tensor].name for n in by_rows if n.inputs[0].tensor in producer}


def mlps(graph: OpGraph, devices: tuple[int, ...]) -> dict[str, Split]:
    """Splits of the pairs of projections of the MLPs and experts, and of what makes the logits, by rows.

    A pair is a projection, elementwise functions, and a projection that needs nothing but their results: the first is
    divided by rows, the second by columns, without `adds` yet. ValueError if a device would get nothing.
    """
    producer = graph.producer()
    splits: dict[str, Split] = {}
    for node in graph.nodes:
        axes = op_of(node).split_axes
        if ROWS in axes and any(view.tensor in graph.outputs for view in node.outputs):
            splits[node.name] = divided(node, ROWS, devices)
        elif takes_cols(node):
            first = [n for n in _made_by(node.inputs[0], producer) if ROWS in op_of(n).split_axes]
            for before in first:
                splits[before.name] = divided(before, ROWS, devices)
            if first:
                splits[node.name] = divided(node, COLS, devices)
    return splits


def looks_up(node: OpNode) -> bool:
    """Whether an operator reads single rows of a table, however long the context is."""
    return any(not rows.of_context and rows.most for rows in op_of(node).reads(node).values())


def _of_heads(node: OpNode, heads: int) -> bool:
    """Whether an operator works on `heads` heads, each for itself."""
    axis = op_of(node).split_axes.get(HEADS)
    return axis is not None and axis.extent(node) == heads


def takes_cols(node: OpNode) -> bool:
    """Whether an operator can be divided by the columns of its weight: its input isn't normed as a whole."""
    return COLS in op_of(node).split_axes and len(node.weights) == 1 and node.attrs.get("norm") is None


def _made_by(view: View, producer: dict[str, OpNode]) -> list[OpNode]:
    """The operators that a view's tensor comes from, seen through elementwise ones."""
    made = producer.get(view.tensor)
    if made is None:
        return []
    return [n for v in made.inputs for n in _made_by(v, producer)] if op_of(made).is_elementwise else [made]


def feeding(graph: OpGraph, last: set[str], without: AbstractSet[str] = frozenset()) -> set[str]:
    """`last`, and the operators whose results are read only by these operators; never those in `without`.

    What an operator appends to a cache counts as read by those that read the cache.
    """
    found = set(last)
    consumers = graph.consumers()
    for node in reversed(graph.nodes):
        caches = node.inputs[: len(op_of(node).mutated)]
        readers = [r for view in node.outputs for r in consumers[view.tensor]]
        readers += [r for view in caches for r in consumers[view.tensor] if not op_of(r).mutated]
        leaves = any(view.tensor in graph.outputs for view in node.outputs)
        if readers and not leaves and node.name not in without and all(r.name in found for r in readers):
            found.add(node.name)
    return found


def divided(node: OpNode, axis: str, devices: tuple[int, ...]) -> Split:
    """Divides an operator by rows or columns of its weight: by whole panels if there are enough, else by single ones.

    ValueError if a device would get nothing.
    """
    size = node.weights[0].shape[-2 if axis == ROWS else -1]
    if size < len(devices):
        raise ValueError(f"{node.name} has {size} {axis}, which can't be divided over {len(devices)} devices")
    unit = 16 if size % 16 == 0 and size // 16 >= len(devices) else 1
    return Split.shared(axis, size // unit, devices, unit)


def summed(node: OpNode, split: Split, devices: int, reduction: str | None) -> Split:
    """The split with all devices reducing the partial sums, in the form `reduction` or, with None, in the cheaper one.

    `one_shot`: each reduces all columns. `two_step`: each reduces its share of them and pushes the sums to the others.

    A device pushes D-1 copies of its sum for `one_shot`, and 2 (D-1)/D for `two_step`, which takes one more hop. So
    the second is cheaper where the difference is more than what a link moves in the time of a hop, HOP_BYTES: for
    GLM-5 on 8 devices from 7 tokens a step on (129 kB a token), and never on 2. The bits are the same, since both add
    the devices' sums in their order.
    """
    tokens, columns = node.outputs[0].shape
    saved = 4 * tokens * columns * (devices - 1) * (devices - 2) / devices
    if reduction == "two_step" or (reduction is None and saved > HOP_BYTES):
        return split.two_step(columns, devices)
    return split.one_shot(columns, devices)
