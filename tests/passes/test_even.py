"""Placement even: graphs of several devices against the undivided graph, and what the recipe divides."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from support.device_reads import device_reads
from support.graph_eval import evaluate, on_devices, random_tensors, window
from support.small import GLM5, glm5_graphs, trace_step, traced_programs
from tilecompile.cost.device_reads import node_reads
from tilecompile.cost.graph_reads import reads
from tilecompile.cost.placement_table import placement_table
from tilecompile.ir.graph import OpGraph
from tilecompile.ir.placement import Split
from tilecompile.models.glm5.config import Glm5Config
from tilecompile.models.glm5.step import Glm5Step
from tilecompile.models.registry import NAMED
from tilecompile.models.spec import Storage
from tilecompile.ops.context import Context
from tilecompile.passes.events import events
from tilecompile.passes.fuse import fuse
from tilecompile.passes.place.distribute import distribute
from tilecompile.passes.place.place import place
from tilecompile.passes.schedule import schedule
from tilecompile.passes.tile import tile
from tilecompile.runtime.folder.rows import span
from tilecompile.schedules import even

TOPK = GLM5["index_topk"]


@functools.cache
def graph_of(program: str, tokens: int) -> OpGraph:
    """A fused program of the small GLM-5; "shared" decodes with two layers that reuse the selection of another."""
    if program != "shared":
        return fuse(glm5_graphs(tokens)[["decode", "draft"].index(program)])
    config = Glm5Config.from_dict({**GLM5, "num_hidden_layers": 4, "index_topk_pattern": "FSFS"})
    with torch.device("meta"):
        return fuse(trace_step(Glm5Step(config, Storage(32), tokens), tokens))


def selections(graph: OpGraph, placed: OpGraph, values: dict[str, Tensor]) -> dict[str, list[list[int]]]:
    """The positions that each selection of the undivided graph comes to on the devices, of each token."""
    found: dict[str, list[list[int]]] = {}
    for node in placed.nodes:
        if node.op == "topk_merge":
            context = Context.of(node)
            assert context
            rows = values[node.outputs[0].tensor]
            name = placed.tensors[node.outputs[0].tensor].undivided
            chosen = found.setdefault(name, [[] for _ in rows])
            for token, own in zip(chosen, rows.tolist(), strict=True):
                token += [context.position(row) for row in own if row >= 0]
    return {name: [sorted(token) for token in chosen] for name, chosen in found.items()}


@pytest.mark.parametrize(("devices", "reduction"), [(2, "one_shot"), (3, "two_step"), (8, None)])
@pytest.mark.parametrize(("program", "tokens"), [("decode", 3), ("draft", 1), ("shared", 1)])
def test_placed_programs_compute_what_one_device_computes(
    program: str, tokens: int, devices: int, reduction: str | None
) -> None:
    graph = graph_of(program, tokens)
    placed = distribute(graph, even.place(graph, devices, reduction))
    tensors = random_tensors(graph, 0)
    for position in (0, TOPK - tokens, 32 - tokens):  # nothing to choose, just so, and a choice
        tensors["position"].fill_(position)
        want, values = evaluate(graph, tensors), on_devices(placed, tensors)
        for name, tokens_of in selections(graph, placed, values).items():
            assert tokens_of == [[p for p in row if p >= 0] for row in want[name].tolist()]
        for a, b in zip(graph.outputs, placed.outputs, strict=True):
            torch.testing.assert_close(values[b], want[a], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_every_weight_and_position_is_read_once(devices: int) -> None:
    graph = graph_of("decode", 1)
    placed = distribute(graph, even.place(graph, devices))
    count = {name: torch.zeros(t.shape) for name, t in graph.tensors.items() if t.role == "weight"}
    rows: dict[tuple[str, str], list[int]] = {}
    for node in placed.nodes:
        for view in node.weights:
            window(count, view).add_(1)
        for view in node.inputs:
            if placed.tensors[view.tensor].role == "cache":
                context = Context.of(node)
                assert context
                key = (node.op, placed.tensors[view.tensor].undivided)
                rows.setdefault(key, []).extend(context.position(row) for row in range(view.shape[0]))
    assert all((c == 1).all() for c in count.values())
    for (op, name), positions in rows.items():
        times = 2 if op == "cache_append" and "kv_cache" in name else 1  # latent and rotated key
        assert sorted(positions) == sorted([*range(32)] * times)


def test_a_selection_in_shards_is_refused_where_a_whole_one_is_read() -> None:
    graph = graph_of("decode", 1)
    placement = even.place(graph, 2)
    for op, words in (("mla_attention", "is divided by context"), ("topk_select", "doesn't have shard 0")):
        splits = dict(placement.splits)
        name = next(n.name for n in graph.nodes if n.op == op)
        if op == "mla_attention":
            splits[name] = Split.shared("heads", 3, (0, 1))
        else:
            splits[name] = Split.cyclic(2, splits[name].block * 2)
        with pytest.raises(ValueError, match=words):
            distribute(graph, type(placement)("even", 2, splits))


@functools.cache
def glm5(layers: int) -> tuple[OpGraph, ...]:
    """The fused programs of GLM-5 with its first layers, in bf16, with caches of 128 Ki positions."""
    config = NAMED["glm-5"].with_layers(range(layers))
    return tuple(fuse(g) for g in traced_programs(config, Storage(CONTEXTS[-1], "bf16", "bf16")))


CONTEXTS = (1024, 16384, 131072)


def check_reads(layers: int) -> None:
    """Each device reads an eighth under `even`, and much more than that under `tensor_parallel`."""
    for graph in glm5(layers):
        whole = reads(graph, CONTEXTS[-1])
        most = {}
        for name in ("even", "tensor_parallel"):
            placed = place(graph, name, 8)
            most[name] = [max(device_reads(placed, n)) / (whole.at(n) / 8) for n in CONTEXTS]
        assert max(most["even"]) <= 1.03
        assert min(most["even"]) >= 1
        assert min(most["tensor_parallel"]) > 1.25


def test_devices_read_equal_shares_of_glm5() -> None:
    check_reads(5)


@pytest.mark.slow
def test_devices_read_equal_shares_of_all_layers_of_glm5() -> None:
    check_reads(78)


@pytest.mark.parametrize("name", ["even", "tensor_parallel", "roles"])
def test_tapes_read_what_is_counted(name: str) -> None:
    placed = [place(graph_of(program, 1), name, 3) for program in ("decode", "draft")]
    nodes = {(p.graph.program, n.name): n for p in placed for n in p.graph.nodes}
    program = schedule([events(tile(p, 5)) for p in placed], 5, dict.fromkeys(nodes, 0), ["commit"])
    for index, p in enumerate(placed):
        counted = [0] * 3
        for node in p.graph.nodes:
            if node.weights:
                read = {v.tensor: p.graph.tensors[v.tensor] for v in node.inputs}.values()
                constants = sum(t.rows * t.cols * 4 for t in read if t.role == "constant")
                counted[node.device] += round(node_reads(p.graph, node, 1)) - constants
        read_of = [0] * 3
        for stream in program.tables["streams"][program.tables["streams"]["program"] == index]:
            for ins in program.tables["instructions"][stream["begin"] : stream["end"]]:
                read_of[stream["device"]] += int(program.tables["tape"]["bytes"][span(ins, "tape")].sum())
        assert read_of == counted


def test_each_device_reads_its_share_of_the_caches() -> None:
    graph = graph_of("decode", 1)
    key, row = GLM5["index_head_dim"] * 4, (GLM5["kv_lora_rank"] + GLM5["qk_rope_head_dim"]) * 4
    for devices in (1, 2, 3):
        placed = place(graph, "even" if devices > 1 else "single", devices)
        without = device_reads(placed, 0)
        for context in (1, 8, 9, 31):
            scanned = 2 * key * context if context > TOPK else 0
            found = sum(device_reads(placed, context)) - sum(without)
            assert found == pytest.approx(scanned + 2 * row * min(context, TOPK))
        assert placement_table(placed).context == 32


def test_placement_table_counts_reads_and_exchanges() -> None:
    table = placement_table(place(graph_of("decode", 1), "even", 2), 20)
    rows = {r.operator: r for r in table.rows}
    q_a = rows["self_attn.q_a_proj"]
    assert (q_a.op, q_a.layers, q_a.devices, q_a.axis) == ("linear", 2, 2, "rows")
    # 40 rows in panels of 16, two on one device and one on the other, alternately; 72 columns, a norm of 72 on both.
    assert sorted(q_a.read) == [4 * 72 * (3 * 16 + 2)] * 2
    assert (q_a.exchanges, q_a.pushes, q_a.pushed) == (2, 4, 2 * 40 * 4)
    assert rows["self_attn.mla_attention"].axis == "context, blocks of 4"
    assert rows["self_attn.o_proj"].axis == "cols, one_shot"
    assert rows["self_attn.indexer.topk_select"].op == "topk_candidates + topk_merge"
    assert table.exchanges == sum(r.exchanges for r in table.rows)
    assert [sum(r.read[d] for r in table.rows) for d in range(2)] == list(table.read)
    # Ids to the other device, two sums a layer, logits back.
    assert placement_table(place(graph_of("decode", 1), "tensor_parallel", 2)).chain == 6
    assert f"{table.exchanges} exchanges, of which {table.chain} one after the other" in str(table)


def test_an_op_without_a_context_rule_can_not_be_divided_by_context() -> None:
    graph = graph_of("decode", 1)
    node = next(n for n in graph.nodes if n.op == "linear")
    placement = even.place(graph, 2)
    splits = {**placement.splits, node.name: Split.cyclic(2, 4)}
    with pytest.raises(ValueError, match=r"is split by context, linear can't be"):
        distribute(graph, replace(placement, splits=splits))
