"""A context in shards: blocks of positions, the choice from candidates, and attention from its parts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from support.opharness import assert_close, expected
from tilecompile.ir.node import OpNode, View
from tilecompile.ops.context import Context
from tilecompile.ops.testing import Case, normal


def shares(count: int, block: int) -> list[Context]:
    return [Context(i, count, block) for i in range(count)]


def run(op: str, inputs: dict[str, Tensor], output: View, **attrs: object) -> Tensor:
    """The reference of an op on whole tensors."""
    dtypes = {torch.float32: "f32", torch.int32: "i32"}
    views = tuple(View.of(name, x.shape, dtypes[x.dtype]) for name, x in inputs.items())
    (y,) = expected(Case(OpNode(op, op, views, (), (output,), attrs), inputs))
    return y


@given(st.integers(1, 9), st.integers(1, 70), st.integers(0, 900))
def test_every_position_of_a_shared_context_has_one_row(count: int, block: int, positions: int) -> None:
    found = {}
    for context in shares(count, block):
        rows = context.rows(positions)
        where = [context.position(row) for row in range(rows)]
        assert where == sorted(where)
        assert [context.rows(p) for p in where] == list(range(rows))
        found.update(dict.fromkeys(where, context.index))
    assert sorted(found) == list(range(positions))
    assert all(index == p // block % count for p, index in found.items())


@settings(deadline=None)
@given(
    tokens=st.integers(1, 3),
    position=st.integers(0, 200),
    topk=st.integers(1, 80),
    count=st.integers(1, 9),
    block=st.integers(1, 64),
    values=st.sampled_from([2, 10, 1000000]),
    seed=st.integers(0, 1 << 30),
)
def test_shares_choose_what_one_device_chooses(
    tokens: int, position: int, topk: int, count: int, block: int, values: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = position + tokens + 3
    scores = torch.randint(-values, values, (tokens, size), generator=generator) / 7
    at = torch.tensor([position], dtype=torch.int32)
    want = run("topk_select", {"scores": scores, "at": at}, View.of("y", (tokens, topk), "i32"), topk=topk)
    having = [c for c in shares(count, block) if c.rows(size)]
    room = max(min(topk, c.rows(size)) for c in having)
    keys = torch.stack(
        [
            run(
                "topk_candidates",
                {"scores": scores[:, [c.position(r) for r in range(c.rows(size))]].contiguous(), "at": at},
                View.of("keys", (tokens, room, 2), "i32"),
                topk=topk,
                context=dataclasses.astuple(c),
            )
            for c in shares(count, block)
        ],
        1,
    )
    chosen: list[list[int]] = [[] for _ in range(tokens)]
    for c in having:
        view = View.of("y", (tokens, min(topk, c.rows(size))), "i32")
        own = run("topk_merge", {"keys": keys, "at": at}, view, topk=topk, context=dataclasses.astuple(c))
        for t in range(tokens):
            rows = own[t][own[t] >= 0].tolist()
            assert own[t].tolist() == rows + [-1] * (view.shape[1] - len(rows))
            chosen[t] += [c.position(r) for r in rows]
    for t in range(tokens):
        assert sorted(chosen[t]) == want[t][want[t] >= 0].tolist()


@pytest.mark.parametrize(("count", "block", "context"), [(1, 16, 40), (3, 8, 200), (8, 4, 30), (8, 64, 90)])
def test_attention_merged_from_parts_is_the_whole_attention(count: int, block: int, context: int) -> None:
    generator = torch.Generator().manual_seed(count)
    heads, latent, rope, topk, scale = 5, 24, 8, 37, 0.2
    query = normal(generator, View.of("q", (1, heads, latent + rope), "f32"))
    cache = normal(generator, View.of("cache", (context, latent + rope), "f32"))
    selection = torch.randperm(context, generator=generator)[:topk].sort().values.int()[None]
    q = {"q_latent": query[..., :latent].contiguous(), "q_rope": query[..., latent:].contiguous()}
    at = torch.tensor([context - 1], dtype=torch.int32)
    y = View.of("y", (1, heads, latent), "f32")
    want = run("mla_attention", {**q, "cache": cache, "selection": selection, "at": at}, y, scale=scale)
    parts = []
    for c in shares(count, block):
        rows = [c.rows(p) for p in selection[0].tolist() if p // block % count == c.index]
        own = torch.full((1, topk), -1, dtype=torch.int32)
        own[0, : len(rows)] = torch.tensor(rows)
        held = torch.cat([cache[[c.position(r) for r in range(c.rows(context))]], torch.zeros(1, latent + rope)])
        view = View.of("part", (1, heads, latent + 2), "f32")
        inputs = {**q, "cache": held, "selection": own, "at": at}
        parts.append(run("mla_attention", inputs, view, scale=scale, context=dataclasses.astuple(c)))
    assert_close(run("attention_merge", {"parts": torch.stack(parts, 1)}, y), want, 1e-5, "attention")
