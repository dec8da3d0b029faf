"""Placement `roles` and the forms of sums over devices, as graphs: the device of each operator, none missing."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch

import tilecompile.ops  # noqa: F401  (registers the tile ops)
from support.engines import ODD
from support.graph_eval import evaluate, random_tensors, window
from support.reference import SMALL
from support.small import glm5_graphs, trace_step
from tilecompile.compile import compile_model
from tilecompile.errors import InputError
from tilecompile.ir.graph import OpGraph, pushes
from tilecompile.ir.node import OpNode, View
from tilecompile.ir.placement import Part, Split
from tilecompile.models.glm5.config import Glm5Config
from tilecompile.models.glm5.step import Glm5Step
from tilecompile.models.spec import Storage
from tilecompile.ops.base import reference_values
from tilecompile.options import CompileOptions
from tilecompile.passes.fuse import fuse
from tilecompile.passes.place.place import place
from tilecompile.schedules import REDUCTIONS
from tilecompile.schedules.shares import summed


def values(graph: OpGraph, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All tensors after one step of several devices; what no operator wrote is NaN."""
    known = {}
    for name, t in graph.tensors.items():
        given = tensors.get(name.split("@")[0])
        if given is not None and (t.role != "activation"):
            known[name] = given.clone()
        else:
            known[name] = torch.full(t.shape, -(1 << 30) if t.dtype == "i32" else torch.nan)
            known[name] = known[name].to(torch.int32 if t.dtype == "i32" else torch.float32)
    for node in graph.nodes:
        if node.op == "commit":
            continue
        inputs, weights = ([window(known, v) for v in views] for views in (node.inputs, node.weights))
        for view, value in zip(node.outputs, reference_values(node, inputs, weights), strict=True):
            window(known, view).copy_(value)
    return known


@pytest.mark.parametrize(("devices", "tokens"), [(2, 1), (3, 3), (8, 1)])
@pytest.mark.parametrize("placement", ["tensor_parallel", "roles"])
def test_placed_programs_compute_the_same(placement: str, devices: int, tokens: int) -> None:
    """Decode and draft; and the form of the sums makes no difference at all."""
    for graph in map(fuse, glm5_graphs(tokens)):
        tensors = random_tensors(graph, seed=devices)
        want = evaluate(graph, tensors)
        placed = [place(graph, placement, devices, reduction).graph for reduction in REDUCTIONS]
        one, two = (values(p, tensors) for p in placed)
        for name, output in zip(graph.outputs, placed[0].outputs, strict=True):
            torch.testing.assert_close(one[output], want[name], rtol=1e-4, atol=1e-5)
            assert torch.equal(one[output], two[output])


@pytest.fixture(scope="module")
def shared() -> OpGraph:
    """Six layers of which 0, 1, 2 and 5 have an indexer, with 7 heads."""
    config = Glm5Config.from_dict(
        {
            **SMALL,
            **ODD,
            "num_hidden_layers": 6,
            "num_attention_heads": 7,
            "num_key_value_heads": 7,
            "index_topk_freq": 3,
            "index_skip_topk_offset": 3,
            "index_topk": 8,
            "model_type": "glm_moe_dsa",
            "architectures": ["GlmMoeDsaForCausalLM"],
            "num_nextn_predict_layers": 0,
        }
    )
    with torch.device("meta"):
        return fuse(trace_step(Glm5Step(config, Storage(32)), 1))


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_attention_and_experts_are_on_the_devices_of_their_roles(shared: OpGraph, devices: int) -> None:
    placed = place(shared, "roles", devices).graph
    where = defaultdict(set)
    for node in placed.nodes:
        if node.op != "push":
            where[node.name.split("@")[0].removesuffix(".sum")].add(node.device)
    attending, everybody = set(range(1, devices)), set(range(devices))
    seen = set()
    for name, found in where.items():
        role = name.split(".", 3)[-1] if ".layers." in name else name
        seen.add(role)
        if ".indexer." in name or role in ("step.embed", "step.argmax"):
            assert found == {0}
        elif role in ("self_attn.q_a_proj", "self_attn.o_proj") or not role.startswith("self_attn."):
            assert found == everybody or role == "commit"
        else:
            assert found == attending, name
    assert {"self_attn.mla_attention", "self_attn.w_uv", "self_attn.cache_append.2", "mlp.gate", "lm_head"} <= seen
    caches = {name for name, t in placed.tensors.items() if t.role == "cache"}
    assert {c.split("@")[1] for c in caches if "index_cache" in c} == {"0"}
    assert {int(c.split("@")[1]) for c in caches if "kv_cache" in c} == attending
    heads = [n.inputs[0].shape[1] for n in placed.nodes if n.op == "mla_attention" and n.layer == 0]
    assert sum(heads) == 7
    assert max(heads) - min(heads) <= 1


def test_selections_are_pushed_once(shared: OpGraph) -> None:
    """A layer that shares an earlier selection finds it: there are as many pushes as indexers and attending devices."""
    full = [n for n in shared.nodes if n.op == "topk_select"]
    attention = [n for n in shared.nodes if n.op == "mla_attention"]
    assert 1 < len(full) < len(attention)
    placed = place(shared, "roles", 8).graph
    pushes = [n for n in placed.nodes if n.op == "push" and ".topk_select" in n.name]
    assert len(pushes) == 7 * len(full)
    assert {n.device for n in pushes} == {0}


def test_devices_without_a_head_attend_to_nothing(shared: OpGraph) -> None:
    placed = place(shared, "roles", 10).graph
    assert {n.device for n in placed.nodes if n.op == "mla_attention"} == set(range(1, 8))
    assert {n.device for n in placed.nodes if n.op == "expert_linear"} == set(range(10))


def test_forms_of_sums_are_printed(shared: OpGraph) -> None:
    one, two = (str(place(shared, "roles", 4, reduction)) for reduction in REDUCTIONS)
    line = next(text for text in two.splitlines() if "layers.1.mlp.experts.down_proj" in text)
    assert line.endswith("cols 0:12 12:24 24:36 36:49, sum two_step on 4: 0:30 30:60 60:90 90:120")
    assert "cols 0:12 12:24 24:36 36:49, sum one_shot on 4" in one
    assert "two_step" not in one
    pushed = {
        text: sum(v.shape[1] for n in graph.nodes for v in pushes(graph, n) if ".partial" in v.tensor)
        for text, graph in (
            ("one", place(shared, "roles", 4, "one_shot").graph),
            ("two", place(shared, "roles", 4, "two_step").graph),
        )
    }
    assert pushed["two"] * 4 == pushed["one"]


def test_two_steps_where_they_push_less_than_a_hop_is_worth() -> None:
    def chosen(tokens: int, devices: int, reduction: str | None = None) -> str | None:
        y = View.of("y", (tokens, 6144), "f32")
        node = OpNode("down_proj", "linear", (), (), (y,))
        parts = tuple(Part(d, d, d + 1) for d in range(devices))
        return summed(node, Split("cols", parts), devices, reduction).reduction

    assert [chosen(tokens, 8) for tokens in (1, 6, 7, 64)] == ["one_shot", "one_shot", "two_step", "two_step"]
    assert chosen(4096, 2) == "one_shot"
    assert chosen(1, 8, "two_step") == "two_step"
    assert chosen(64, 8, "one_shot") == "one_shot"


@pytest.mark.parametrize("placement", ["tensor_parallel", "roles", "even"])
def test_more_devices_than_rows_are_refused(placement: str, tmp_path: Path) -> None:
    config = {**SMALL, **ODD, "num_hidden_layers": 2, "moe_intermediate_size": 9}
    config |= {"num_key_value_heads": 5, "model_type": "glm_moe_dsa"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["GlmMoeDsaForCausalLM"]}))
    options = CompileOptions(str(tmp_path), tmp_path / "e", devices=10, placement=placement, no_weights=True)
    with pytest.raises(InputError, match=r"has 9 rows, which can't be divided over 10 devices") as error:
        compile_model(options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("devices", "placement", "reduction", "words"),
    [
        (1, "roles", None, "placement roles is for 2 devices or more, got 1"),
        (1, "tensor_parallel", "two_step", "placement tensor_parallel is for 2 devices or more, got 1"),
        (1, "single", "two_step", "--reduction two_step is the form of sums over devices, want 2 devices or more"),
        (2, "roles", "three_step", "--reduction 'three_step' is unknown; there are: one_shot, two_step"),
    ],
)
def test_a_placement_or_reduction_that_does_not_apply_is_refused(
    devices: int, placement: str, reduction: str | None, words: str, tmp_path: Path
) -> None:
    options = CompileOptions(
        "glm5-mini", tmp_path / "e", devices=devices, placement=placement, reduction=reduction, no_weights=True
    )
    with pytest.raises(InputError, match=words):
        compile_model(options)
