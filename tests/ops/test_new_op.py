"""An op in a folder outside the package: registered, it is traced, placed, costed, proved without an edit elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from support.device_reads import device_reads
from support.gqa_attention import GQA_ATTENTION, gqa_attention
from support.graph_eval import evaluate, on_devices, random_tensors
from support.opharness import RUNNABLE, assert_close, build_bodies, expected, run_body
from tilecompile import ops
from tilecompile.cost.graph_reads import reads
from tilecompile.cost.simulate.work import Work, work_of
from tilecompile.cost.step_time.spans import tasks_of
from tilecompile.errors import InputError
from tilecompile.ir.graph import OpGraph
from tilecompile.ir.node import OpNode, View
from tilecompile.ir.placement import PlacedGraph
from tilecompile.ir.program import Program, graph_of
from tilecompile.ops.base import REGISTRY, TileOp, TraitError, register
from tilecompile.ops.testing import Case
from tilecompile.passes.events import events
from tilecompile.passes.fuse import fuse
from tilecompile.passes.place.place import place
from tilecompile.passes.schedule import schedule
from tilecompile.passes.tile import tile
from tilecompile.passes.trace import trace
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.targets.cpu.build import Isa
from tilecompile.targets.cpu.emit import task_kinds
from tilecompile.verify.proof import verify

HIDDEN, HEADS, GROUPS, WIDTH, VOCAB, ROWS = 48, 6, 3, 8, 40, 32


class Attention(nn.Module):
    """Grouped-query attention with caches of keys and values."""

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Parameter(torch.empty(HEADS * WIDTH, HIDDEN))
        self.k_proj, self.v_proj = (nn.Parameter(torch.empty(GROUPS * WIDTH, HIDDEN)) for _ in range(2))
        self.o_proj = nn.Parameter(torch.empty(HIDDEN, HEADS * WIDTH))
        self.register_buffer("keys", torch.zeros(ROWS, GROUPS * WIDTH))
        self.register_buffer("values", torch.zeros(ROWS, GROUPS * WIDTH))

    def forward(self, h: Tensor, angles: Tensor, position: Tensor) -> Tensor:
        tokens = h.shape[0]
        query = ops.rope(ops.linear(h, self.q_proj).view(tokens, HEADS, WIDTH), angles)
        key = ops.rope(ops.linear(h, self.k_proj).view(tokens, GROUPS, WIDTH), angles)
        ops.cache_append(self.keys, key.view(tokens, GROUPS * WIDTH), position, 0)
        ops.cache_append(self.values, ops.linear(h, self.v_proj), position, 0)
        caches = (cache.view(ROWS, GROUPS, WIDTH) for cache in (self.keys, self.values))
        y: Tensor = gqa_attention(query, *caches, position, WIDTH**-0.5)
        return ops.linear(y.reshape(tokens, HEADS * WIDTH), self.o_proj)


class Step(nn.Module):
    """Embedding, two layers of attention alone, logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = (nn.Parameter(torch.empty(VOCAB, HIDDEN)) for _ in range(2))
        self.norm, self.frequencies = nn.Parameter(torch.empty(HIDDEN)), nn.Parameter(torch.empty(WIDTH // 2))
        self.layers = nn.ModuleList([Attention() for _ in range(2)])

    def forward(self, ids: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        angles = ops.rope_angles(position, self.frequencies, ids.shape[0])
        x = ops.embed(ids, self.embed)
        for layer in self.layers:
            x = x + layer(ops.rms_norm(x, self.norm, 1e-5), angles, position)
        logits = ops.linear(ops.rms_norm(x, self.norm, 1e-5), self.head)
        return logits, ops.argmax(logits)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register(GQA_ATTENTION)
    yield
    REGISTRY.pop(GQA_ATTENTION.name)


def graph() -> OpGraph:
    with torch.device("meta"):
        step = Step().requires_grad_(False)
    args = tuple(torch.zeros(1, dtype=torch.int32, device="meta") for _ in range(2))
    return fuse(trace(step, args, ("ids", "position"), ("logits", "next"), "decode"))


def placed(recipe: str, devices: int) -> PlacedGraph:
    return place(graph(), recipe if devices > 1 else "single", devices)


def planned(found: PlacedGraph, workers: int) -> Program:
    plan = events(tile(found, workers))
    nodes = {("decode", node.name): node for node in found.graph.nodes}
    kinds, of_node = task_kinds(nodes)
    index = dict.fromkeys(nodes, 0) | {label: kind.index for label, kind in of_node.items()}
    return schedule([plan], workers, index, ["commit", *(kind.function for kind in kinds)])


SHARES = [("tensor_parallel", 1), ("tensor_parallel", 2), ("tensor_parallel", 3), ("roles", 3), ("roles", 4)]


@pytest.mark.parametrize(("recipe", "devices"), SHARES)
def test_divided_placements_compute_what_the_undivided_graph_does(recipe: str, devices: int) -> None:
    whole, found = graph(), placed(recipe, devices)
    tensors = random_tensors(whole, devices)
    want, got = evaluate(whole, tensors), on_devices(found.graph, tensors)
    for a, b in zip(found.graph.outputs, whole.outputs, strict=True):
        assert torch.allclose(got[a].float(), want[b].float(), atol=1e-5)


@pytest.mark.parametrize(("devices", "shares"), [(2, [(0, 2), (2, 6)]), (3, [(0, 2), (2, 4), (4, 6)])])
def test_query_and_key_value_heads_are_divided_together(devices: int, shares: list[tuple[int, int]]) -> None:
    found = placed("tensor_parallel", devices)
    for name, split in found.placement.splits.items():
        if "gqa_attention" in name:
            assert [(p.begin, p.end) for p in split.parts] == shares
    nodes = [n for n in found.graph.nodes if n.op == GQA_ATTENTION.name and n.layer == 1]
    for node, (begin, end) in zip(sorted(nodes, key=lambda n: n.device), shares, strict=True):
        assert [view.shape[1] for view in node.inputs[:3]] == [end - begin, (end - begin) // 2, (end - begin) // 2]
    axes = {name: split.axis for name, split in found.placement.splits.items()}
    assert [axes[f"layers.0.{name}"] for name in ("q_proj", "k_proj", "o_proj")] == ["rows", None, "cols"]


@pytest.mark.parametrize("isa", RUNNABLE, ids=lambda isa: isa.name)
def test_the_body_agrees_with_the_reference(isa: Isa) -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = {"q": (2, HEADS, WIDTH), "k": (ROWS, GROUPS, WIDTH), "v": (ROWS, GROUPS, WIDTH)}
    views = [View.of(name, shape, "f32") for name, shape in shapes.items()]
    y, position = View.of("y", shapes["q"], "f32"), View.of("position", (1,), "i32")
    node = OpNode("new", GQA_ATTENTION.name, (*views, position), (), (y,), {"scale": WIDTH**-0.5})
    library, kinds = build_bodies([node], isa)
    for at in (0, 5, ROWS - 2):
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        tensors["k"][at + 2 :], tensors["v"][at + 2 :] = torch.nan, torch.nan  # behind the context
        case = Case(node, {**tensors, "position": torch.tensor([at], dtype=torch.int32)})
        for parts in (1, 2, 5):
            for got, want in zip(run_body(library, kinds["new"], case, parts), expected(case), strict=True):
                assert_close(got, want, case.tolerance, f"at {at} in {parts} parts")


def test_traffic_counts_the_rows_of_the_context() -> None:
    formula = reads(graph(), ROWS)
    row = 2 * 2 * 4 * GROUPS * WIDTH  # two layers, keys and values, f32
    assert [formula.at(context) - formula.fixed for context in (1, 7, ROWS)] == [row, 7 * row, ROWS * row]


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_a_device_reads_its_own_heads_of_the_caches(devices: int) -> None:
    found = placed("tensor_parallel", devices)
    none, some = device_reads(found, 0), device_reads(found, 9)
    groups = {1: [3], 2: [1, 2], 3: [1, 1, 1]}[devices]
    assert [b - a for a, b in zip(none, some, strict=True)] == [2 * 2 * 4 * 9 * WIDTH * g for g in groups]


@pytest.mark.parametrize(("recipe", "devices"), SHARES)
def test_schedules_are_proved_and_tasks_do_their_work(recipe: str, devices: int) -> None:
    found = placed(recipe, devices)
    program = planned(found, 2)
    assert verify(program.tables, program.operators).instructions == len(program.tables["instructions"])
    work, mine = simulated(found, program, 11)
    assert work.caches[mine].sum() == work.distinct[mine].sum() == 2 * 2 * 4 * 11 * GROUPS * WIDTH
    assert work.products[mine].sum() == 2 * 2 * 11 * HEADS * WIDTH
    assert (work.caches[~mine] == 0).all()


def simulated(found: PlacedGraph, program: Program, context: int) -> tuple[Work, np.ndarray]:
    """The work of each task in the simulator, and which tasks are of the new op."""
    facts = {"workers": 2 * found.placement.devices, "devices": found.placement.devices, "max_seq_len": ROWS}
    manifest = Manifest("none", {**facts, "kinds": program.kinds, "operators": program.operators})  # type: ignore[arg-type]
    nodes = graph_of([events(tile(found, 2))]).nodes
    tasks = tasks_of(manifest, program.tables, facts["workers"], 0)
    work = work_of(program.tables, nodes, tasks.instruction, tasks.device, context)
    ops_of = program.tables["instructions"]["op"][tasks.instruction]
    return work, np.array([nodes[op].op == GQA_ATTENTION.name for op in ops_of])


def replaced(op: TileOp) -> None:
    REGISTRY.pop(op.name)
    register(op)


@pytest.mark.parametrize(
    ("trait", "left_out", "words"),
    [
        ("reads", lambda node: {}, r"gqa_attention reads a cache as input 1 .*\(`reads`\)"),
        ("work", None, r"gqa_attention reads a cache .*\(`work`\)"),
    ],
)
def test_a_trait_that_is_left_out_is_an_error(trait: str, left_out: object, words: str) -> None:
    replaced(replace(GQA_ATTENTION, **{trait: left_out}))  # type: ignore[arg-type]
    with pytest.raises(TraitError, match=words):
        tile(placed("single", 1), 2)


def test_reads_that_are_left_out_are_an_error_in_the_costs_too() -> None:
    replaced(replace(GQA_ATTENTION, reads=lambda node: {}))
    for cost in (lambda: reads(graph(), ROWS), lambda: device_reads(placed("single", 1), 3)):
        with pytest.raises(TraitError, match=r"`reads`"):
            cost()


def test_axes_that_are_left_out_are_an_error_on_several_devices() -> None:
    replaced(replace(GQA_ATTENTION, split_axes={}))
    with pytest.raises(TraitError, match=r"gqa_attention reads a cache and states no way to divide it"):
        placed("tensor_parallel", 2)


def test_a_cache_that_an_op_writes_and_reads_needs_reads_too() -> None:
    op = REGISTRY["cache_append"]
    replaced(replace(op, reads=lambda node: {}))
    try:
        with pytest.raises(TraitError, match=r"cache_append reads a cache as input 0 .*\(`reads`\)"):
            tile(placed("single", 1), 2)
    finally:
        replaced(op)


def test_slots_that_are_left_out_are_an_error() -> None:
    op = REGISTRY["expert_linear"]
    replaced(replace(op, slots=None))
    try:
        x, expert, weight = (torch.zeros(shape, device="meta") for shape in ((1, 8), (1, 2), (1, 2)))
        module = _Experts()
        found = trace(module, (x, expert.int(), weight), ("ids", "position", "slot_weight"), ("y",), "decode")
        with pytest.raises(TraitError, match=r"expert_linear streams weights by slot .*\(`slots`\)"):
            tile(place(found, "single", 1), 2)
    finally:
        replaced(op)


class _Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, 16, 8, device="meta"), requires_grad=False)

    def forward(self, x: Tensor, expert: Tensor, slot_weight: Tensor) -> Tensor:
        y: Tensor = ops.expert_linear(x, expert, slot_weight, self.weight)
        return y


def test_an_op_without_a_rule_for_the_context_is_refused_by_even() -> None:
    with pytest.raises(InputError, match=r"placement even divides caches by context, which gqa_attention .* can't be"):
        placed("even", 2)
