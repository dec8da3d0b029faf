"""by_context: operators divided by blocks of the context, for `distribute`.

Each device appends to its caches, scores and attends to the positions of its own blocks (`ops/context.py`). Two things
must be put together from all devices. The choice of the best positions: each device pushes the best of its own as
candidates, and each finds out which of its own are among the best of all (`topk_select` becomes `topk_candidates` and
`topk_merge`). And the softmax: each device pushes the parts of all heads to the devices that go on with these heads,
which are the split's `adds` (`mla_attention` becomes one on a share and `attention_merge`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tilecompile.ir.node import OpNode
from tilecompile.ir.placement import Split
from tilecompile.ops.context import Context
from tilecompile.ops.topk_candidates import FIELDS
from tilecompile.passes.place.copies import Copies


def by_context(copies: Copies, node: OpNode, split: Split) -> None:
    """Adds a node's operators. ValueError for an op that can't be divided in this way."""
    if node.op not in RULES:
        raise ValueError(f"{node.name} is split by context, {node.op} can't be")
    RULES[node.op](copies, node, split)


def _parts(node: OpNode, split: Split) -> Iterator[tuple[int, Context, OpNode]]:
    """Devices, their share of the context, and the operator that works on it."""
    for i, part in enumerate(split.parts):
        context = Context(i, len(split.parts), split.block)
        yield part.device, context, replace(node, attrs={**node.attrs, "context": (i, context.count, context.block)})


def _gate(node: OpNode) -> dict[str, object]:
    return {"gate": node.attrs["gate"]} if node.attrs.get("gate") else {}


def _cache_append(copies: Copies, node: OpNode, split: Split) -> None:
    cache = node.inputs[0]
    for device, context, own in _parts(node, split):
        share = copies.make_share(cache.tensor, device, context, (context.rows(cache.shape[0]), *cache.shape[1:]))
        copies.add(own, device, (share, *node.inputs[1:]), (), ())


def _index_score(copies: Copies, node: OpNode, split: Split) -> None:
    query, weight, cache, position = node.inputs
    (scores,) = node.outputs
    for device, context, own in _parts(node, split):
        keys = copies.share(cache.tensor, device, context)
        result = copies.make_share(scores.tensor, device, context, (scores.shape[0], keys.shape[0]))
        copies.add(own, device, (query, weight, keys, position), (), (result,), private=True)


def _topk_select(copies: Copies, node: OpNode, split: Split) -> None:
    scores, position = node.inputs
    (selection,) = node.outputs
    tokens, topk = selection.shape
    parts = list(_parts(node, split))
    room = min(topk, parts[0][1].rows(scores.shape[1]))
    keys = copies.make(f"{selection.tensor}.candidates", (tokens, len(parts), room, FIELDS), "i32")
    for device, context, own in parts:
        inputs = (copies.share(scores.tensor, device, context), position)
        candidates = replace(own, name=f"{node.name}.candidates", op="topk_candidates")
        copies.add(candidates, device, inputs, (), (keys.select(1, context.index),))
    for device, context, own in parts:
        size = min(topk, context.rows(scores.shape[1]))
        result = copies.make_share(selection.tensor, device, context, (tokens, size))
        merge = replace(own, name=f"{node.name}.merge", op="topk_merge")
        copies.add(merge, device, (keys, position), (), (result,), private=True)


def _mla_attention(copies: Copies, node: OpNode, split: Split) -> None:
    q_latent, q_rope, cache, selection, position = node.inputs
    (y,) = node.outputs
    tokens, heads, latent = y.shape
    slots = copies.make(f"{y.tensor}.parts", (tokens, len(split.parts), heads, latent + 2), y.dtype)
    for device, context, own in _parts(node, split):
        own = replace(own, attrs={**own.attrs, "topk": selection.shape[1]})  # of all shares together
        rows, chosen = (copies.share(v.tensor, device, context) for v in (cache, selection))
        inputs = (q_latent, q_rope, rows, chosen, position)
        copies.add(own, device, inputs, (), (slots.select(1, context.index),))
    merge = OpNode(f"{node.name}.merge", "attention_merge", (), (), (), _gate(node), node.layer)
    for part in split.adds:
        result = y.narrow(1, part.begin, part.end)
        copies.add(merge, part.device, (slots.narrow(2, part.begin, part.end),), (), (result,))


RULES: dict[str, Callable[[Copies, OpNode, Split], None]] = {
    "cache_append": _cache_append,
    "index_score": _index_score,
    "topk_select": _topk_select,
    "mla_attention": _mla_attention,
}
"""Ops that can be divided by context. Of a view that they read of a tensor that is divided, all of it is meant."""
