"""GLM-5's own shapes on one of 8 devices, as cases of the ops whose GPU bodies are written in TileLang."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.context import Context
from tilecompile.ops.route.cases import spread
from tilecompile.ops.sample.cases import PENALTIES, make_case
from tilecompile.ops.testing import Case, normal
from tilecompile.ops.topk_candidates import reference as candidates

HIDDEN, Q_RANK, LATENT, ROPE = 6144, 2048, 512, 64
HEADS, HEAD = 64 // 8, 256
INDEX_HEADS, INDEX_HEAD, TOPK = 32, 128, 2048
EXPERTS, CHOSEN, VOCAB, DEVICES = 256, 8, 154880, 8
SHARED = Context(3, DEVICES, 64)
ATTRS = (SHARED.index, SHARED.count, SHARED.block)

Make = Callable[[torch.Generator, int], Iterator[Case]]


def view(name: str, *shape: int, dtype: str = "f32") -> View:
    """A whole tensor."""
    return View.of(name, shape, dtype)


def number(name: str, value: int) -> dict[str, torch.Tensor]:
    """An i32 [1]."""
    return {name: torch.tensor([value], dtype=torch.int32)}


def drawn(generator: torch.Generator, *views: View) -> dict[str, torch.Tensor]:
    """Normally distributed tensors."""
    return {v.tensor: normal(generator, v) for v in views}


def maps(g: torch.Generator, tokens: int) -> Iterator[Case]:
    """The activation of an MLP's halves, and the sum of all devices' parts of a hidden state."""
    wide, y = view("x", tokens, 2 * 1536), view("y", tokens, 1536)
    halves = tuple(View("x", y.shape, wide.strides, offset, "f32") for offset in (0, 1536))
    gate = ("mul", ("silu", ("in", 0)), ("in", 1))
    yield Case(OpNode("gate", "map", halves, (), (y,), {"expr": gate}), drawn(g, wide))
    slots, y = view("slots", tokens, DEVICES, HIDDEN), view("y", tokens, HIDDEN)
    parts = tuple(View("slots", y.shape, (slots.strides[0], 1), d * HIDDEN, "f32") for d in range(DEVICES))
    total = ("in", 0)
    for d in range(1, DEVICES):
        total = ("add", total, ("in", d))
    yield Case(OpNode("sum", "map", parts, (), (y,), {"expr": total}), drawn(g, slots))


def norms(g: torch.Generator, tokens: int) -> Iterator[Case]:
    """The norms of hidden states, of the query's latent and of the cache's, which is a window."""
    for size, width in ((HIDDEN, HIDDEN), (Q_RANK, Q_RANK), (LATENT, LATENT + ROPE)):
        x, w, y = View("x", (tokens, size), (width, 1), 0, "f32"), view("w", size), view("y", tokens, size)
        tensors = drawn(g, w, view("x", tokens, width))
        yield Case(OpNode(f"norm{size}", "rms_norm", (x, w), (), (y,), {"eps": 1e-5}), tensors)


def layer_norms(g: torch.Generator, tokens: int) -> Iterator[Case]:
    """The norm of the indexer's keys."""
    inputs = (view("x", tokens, INDEX_HEAD), view("w", INDEX_HEAD), view("b", INDEX_HEAD))
    y = view("y", tokens, INDEX_HEAD)
    yield Case(OpNode("norm", "layer_norm", inputs, (), (y,), {"eps": 1e-6}), drawn(g, *inputs))


def ropes(g: torch.Generator, tokens: int) -> Iterator[Case]:
    """The rotated part of this device's queries, and the indexer's queries."""
    angles, turn = view("angles", tokens, 2, ROPE // 2), torch.rand((tokens, ROPE // 2), generator=g) * 6.3
    turns = {"angles": torch.stack([turn.cos(), turn.sin()], 1)}
    for heads, size, width in ((HEADS, ROPE, HEAD), (INDEX_HEADS, INDEX_HEAD, INDEX_HEAD)):
        x = View("x", (tokens, heads, size), (heads * width, width, 1), width - size, "f32")
        tensors = drawn(g, view("x", tokens, heads, width)) | turns
        yield Case(OpNode(f"rope{size}", "rope", (x, angles), (), (view("y", tokens, heads, size),)), tensors)


def angles(g: torch.Generator, tokens: int) -> Iterator[Case]:
    """Late in the longest context."""
    inputs = (view("position", 1, dtype="i32"), view("inv_freq", ROPE // 2))
    tensors = number("position", 202_000) | {"inv_freq": 1.0 / 1e6 ** (torch.arange(ROPE // 2) / (ROPE // 2))}
    y = view("y", tokens, 2, ROPE // 2)
    yield Case(OpNode("angles", "rope_angles", inputs, (), (y,), {"tokens": tokens}), tensors, 3e-7)


def embeds(g: torch.Generator, tokens: int) -> Iterator[Case]:
    """A short table of rows as wide as GLM-5's."""
    inputs = (view("ids", tokens, dtype="i32"), view("table", 50, HIDDEN, dtype="bf16"))
    tensors = drawn(g, inputs[1]) | {"ids": torch.randint(50, (tokens,), generator=g, dtype=torch.int32)}
    yield Case(OpNode("embed", "embed", inputs, (), (view("y", tokens, HIDDEN),)), tensors, 0)


def argmaxes(g: torch.Generator, tokens: int) -> Iterator[Case]:
    """The whole vocabulary."""
    x = view("x", tokens, VOCAB)
    yield Case(OpNode("argmax", "argmax", (x,), (), (view("y", tokens, dtype="i32"),)), drawn(g, x), 0)


def routes(g: torch.Generator, tokens: int) -> Iterator[Case]:
    """All experts."""
    logits, bias = view("logits", tokens, EXPERTS), view("bias", EXPERTS)
    outputs = (view("ids", tokens, CHOSEN, dtype="i32"), view("weights", tokens, CHOSEN))
    attrs = {"topk": CHOSEN, "normalize": True, "scale": 2.5}
    yield Case(OpNode("route", "route", (logits, bias), (), outputs, attrs), spread(g, logits, bias))


def dispatches(g: torch.Generator, tokens: int) -> Iterator[Case]:
    """Each token's experts."""
    slots = tokens * CHOSEN
    inputs = (view("ids", tokens, CHOSEN, dtype="i32"), view("weights", tokens, CHOSEN))
    outputs = (view("expert", 1, slots, dtype="i32"), view("slot_weight", tokens, slots))
    ids = torch.stack([torch.randperm(EXPERTS, generator=g)[:CHOSEN] for _ in range(tokens)]).int()
    tensors = drawn(g, inputs[1]) | {"ids": ids}
    yield Case(OpNode("dispatch", "dispatch", inputs, (), outputs, {"slots": slots}), tensors, 0)


def appends(g: torch.Generator, tokens: int) -> Iterator[Case]:
    """Latents, rotated keys and index keys, at the seam of two devices' blocks and within one."""
    for width, column, size in ((LATENT, 0, LATENT + ROPE), (ROPE, LATENT, LATENT + ROPE), (INDEX_HEAD, 0, INDEX_HEAD)):
        for position in (3 * 64 - 2, 3 * 64 + 512):
            inputs = (
                view("cache", 128, size, dtype="bf16"),
                view("x", tokens, width),
                view("position", 1, dtype="i32"),
            )
            tensors = drawn(g, *inputs[:2]) | number("position", position)
            attrs = {"column": column, "context": ATTRS}
            yield Case(OpNode(f"append{width}_{position}", "cache_append", inputs, (), (), attrs), tensors, 0)


def pushes(g: torch.Generator, tokens: int) -> Iterator[Case]:
    """A part of a hidden state."""
    x = view("x", tokens, HIDDEN)
    yield Case(OpNode("push", "push", (x,), (), (view("y", tokens, HIDDEN),)), drawn(g, x), 0)


def selects(g: torch.Generator, tokens: int) -> Iterator[Case]:
    """All of 16,384 positions on one device; then with few values, so that larger scores are between ties."""
    inputs = (view("scores", tokens, 16384), view("position", 1, dtype="i32"))
    tensors = drawn(g, inputs[0]) | number("position", 16000)
    y = view("selection", tokens, TOPK, dtype="i32")
    yield Case(OpNode("select", "topk_select", inputs, (), (y,), {"topk": TOPK}), tensors, 0)
    tensors = tensors | {"scores": tensors["scores"].round()}
    yield Case(OpNode("ties", "topk_select", inputs, (), (y,), {"topk": TOPK}), tensors, 0)


def shares(g: torch.Generator, tokens: int) -> Iterator[Case]:
    """An eighth of 65,536 positions."""
    inputs = (view("scores", tokens, 8192), view("position", 1, dtype="i32"))
    tensors = drawn(g, inputs[0]) | number("position", 65000)
    attrs = {"topk": TOPK, "context": ATTRS}
    keys = view("keys", tokens, TOPK, 2, dtype="i32")
    yield Case(OpNode("share", "topk_candidates", inputs, (), (keys,), attrs), tensors, 0)


def merges(g: torch.Generator, tokens: int) -> Iterator[Case]:
    """The candidates of all devices."""
    position = number("position", 65000)
    lists = []
    for d in range(DEVICES):
        node = OpNode("", "topk_candidates", (), (), (view("keys", tokens, TOPK, 2, dtype="i32"),))
        node.attrs.update({"topk": TOPK, "context": (d, DEVICES, 64)})
        lists.append(candidates(node, [torch.randn((tokens, 8192), generator=g), position["position"]], []))
    inputs = (view("keys", tokens, DEVICES, TOPK, 2, dtype="i32"), view("position", 1, dtype="i32"))
    attrs = {"topk": TOPK, "context": ATTRS}
    y = view("selection", tokens, TOPK, dtype="i32")
    tensors = position | {"keys": torch.stack(lists, 1)}
    yield Case(OpNode("merge", "topk_merge", inputs, (), (y,), attrs), tensors, 0)


def scores(g: torch.Generator, tokens: int) -> Iterator[Case]:
    """The index keys of a shard."""
    inputs = (
        *(view("query", tokens, INDEX_HEADS, INDEX_HEAD), view("weight", tokens, INDEX_HEADS)),
        *(view("cache", 640, INDEX_HEAD, dtype="bf16"), view("position", 1, dtype="i32")),
    )
    rows = torch.tensor([[SHARED.rows(4500 + t + 1)] for t in range(tokens)])
    attrs = {"topk": TOPK, "context": ATTRS}
    tensors = drawn(g, *inputs[:3]) | number("position", 4500)
    node = OpNode("score", "index_score", inputs, (), (view("scores", tokens, 640),), attrs)
    yield Case(node, tensors, written=torch.arange(640) < rows)


def attentions(g: torch.Generator, tokens: int) -> Iterator[Case]:
    """This device's heads over all selected positions, and all heads over a shard of them."""
    for heads, context, rows in ((HEADS, None, TOPK), (16, ATTRS, 300)):
        inputs = (
            *(view("q_latent", tokens, heads, LATENT), view("q_rope", tokens, heads, ROPE)),
            *(view("cache", 4096, LATENT + ROPE, dtype="bf16"), view("selection", tokens, TOPK, dtype="i32")),
            view("position", 1, dtype="i32"),
        )
        tensors = drawn(g, *inputs[:3]) | number("position", 3000)
        tensors["selection"] = torch.full((tokens, TOPK), -1, dtype=torch.int32)
        for t in range(tokens):
            tensors["selection"][t, :rows] = torch.randperm(3000, generator=g)[:rows].sort().values
        y = view("y", tokens, heads, LATENT + (2 if context else 0))
        attrs = {"scale": HEAD**-0.5, "context": context}
        yield Case(OpNode(f"attend{heads}", "mla_attention", inputs, (), (y,), attrs), tensors)


def parts(g: torch.Generator, tokens: int) -> Iterator[Case]:
    """All devices' parts of this one's heads, of which one has no positions."""
    x = view("parts", tokens, DEVICES, HEADS, LATENT + 2)
    tensors = drawn(g, x)
    tensors["parts"][..., LATENT + 1] = tensors["parts"][..., LATENT + 1].abs() + 1
    tensors["parts"][:, 5] = 0
    y = view("y", tokens, HEADS, LATENT)
    yield Case(OpNode("parts", "attention_merge", (x,), (), (y,)), tensors)


def samples(g: torch.Generator, tokens: int) -> Iterator[Case]:
    """A draw by all filters and penalties, one that hardly leaves an id out, and the likeliest ids."""
    for values in (
        PENALTIES | {"temperature": 1.0, "top_k": 200, "top_p": 0.95, "min_p": 0.01},
        {"temperature": 20.0, "top_p": 0.99},
        {"temperature": 0.0},
    ):
        yield make_case(g, (tokens, tokens, VOCAB, 0), values, False)


def keeps(g: torch.Generator, tokens: int) -> Iterator[Case]:
    """Hidden rows for the MTP layer."""
    inputs = (view("state", 8, HIDDEN), view("x", tokens, HIDDEN))
    yield Case(OpNode("keep", "keep", inputs, (), ()), drawn(g, *inputs), 0)


def last_tokens(g: torch.Generator, tokens: int) -> Iterator[Case]:
    """The hidden row that the head takes."""
    x = view("x", tokens, HIDDEN)
    yield Case(OpNode("last", "last_token", (x,), (), (view("y", 1, HIDDEN),)), drawn(g, x), 0)


def places(g: torch.Generator, tokens: int) -> Iterator[Case]:
    """Where the MTP layer's tokens are."""
    node = OpNode(
        "places", "token_positions", (view("position", 1, dtype="i32"),), (), (view("y", tokens, 1, dtype="i32"),)
    )
    yield Case(node, number("position", 3000), 0)


CASES: dict[str, Make] = {
    "map": maps,
    "rms_norm": norms,
    "layer_norm": layer_norms,
    "rope": ropes,
    "rope_angles": angles,
    "embed": embeds,
    "argmax": argmaxes,
    "sample": samples,
    "route": routes,
    "dispatch": dispatches,
    "cache_append": appends,
    "push": pushes,
    "topk_select": selects,
    "topk_candidates": shares,
    "topk_merge": merges,
    "index_score": scores,
    "mla_attention": attentions,
    "attention_merge": parts,
    "keep": keeps,
    "last_token": last_tokens,
    "token_positions": places,
}
