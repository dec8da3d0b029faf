"""Attention in parts, and results stored straight to the peers: the passes, and that engines give the same."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilecompile
from support.device_reads import device_reads
from support.reference import draw
from support.small import GLM5, traced_programs
from tilecompile.compile import compile_model
from tilecompile.cost.placement_table import placement_table
from tilecompile.interpret.interpreter import Interpreter
from tilecompile.ir.graph import OpGraph, Tensor, pushes
from tilecompile.ir.node import OpNode, View
from tilecompile.ir.placement import PlacedGraph
from tilecompile.models.glm5.config import Glm5Config
from tilecompile.models.spec import Storage
from tilecompile.options import CompileOptions
from tilecompile.passes.fuse import fuse
from tilecompile.passes.place.direct import direct
from tilecompile.passes.place.place import place
from tilecompile.passes.place.split_over_workers import split_over_workers
from tilecompile.runtime.folder.manifest import read_manifest
from tilecompile.runtime.names import OP, PUSH

CONTEXT = 40
ATTENTION = sys.modules["tilecompile.ops.mla_attention"]  # the package exports a function of the same name
SIZES = {**GLM5, "index_topk": 24, "num_nextn_predict_layers": 0}


def placed(devices: int, recipe: str = "tensor_parallel", reduction: str | None = None) -> PlacedGraph:
    config = Glm5Config.from_dict({**SIZES, "architectures": ["GlmMoeDsaForCausalLM"], "model_type": "glm_moe_dsa"})
    (graph,) = traced_programs(config, Storage(CONTEXT))
    return place(fuse(graph), recipe if devices > 1 else "single", devices, reduction)


def attentions(graph: OpGraph) -> list[OpNode]:
    return [n for n in graph.nodes if n.op == "mla_attention"]


@pytest.mark.parametrize(("devices", "workers", "parts"), [(1, 5, 1), (1, 6, 2), (1, 11, 3), (1, 99, 3), (3, 2, 2)])
def test_attention_is_split_into_parts_while_workers_and_entries_suffice(
    monkeypatch: pytest.MonkeyPatch, devices: int, workers: int, parts: int
) -> None:
    """Three heads of 24 entries, in as many parts as there are workers for, and none of fewer than 8 entries."""
    monkeypatch.setattr(ATTENTION, "ENTRIES", 8)
    monkeypatch.setattr(ATTENTION, "UNIT", 4)
    before = placed(devices)
    after = split_over_workers(before, workers)
    assert len(attentions(after.graph)) == parts * len(attentions(before.graph))
    assert (after is before) == (parts == 1)
    for layer in range(SIZES["num_hidden_layers"]) if parts > 1 else ():
        for device in range(devices):
            mine = [n for n in attentions(after.graph) if (n.layer, n.device) == (layer, device)]
            spans = [(n.inputs[3].offset, n.inputs[3].offset + n.inputs[3].shape[1]) for n in mine]
            assert spans == list(zip([0, *(end for _, end in spans[:-1])], [end for _, end in spans], strict=True))
            assert spans[-1][1] == 24
    for context in (1, 7, 24, CONTEXT):
        assert device_reads(after, context) == pytest.approx(device_reads(before, context))


def node(op: str, x: View, *outputs: View, device: int = 0, name: str = "n") -> OpNode:
    role = PUSH if op == "push" else OP
    return OpNode(name, op, (x,), (), outputs, {"expr": ("in", 0)}, device=device, role=role)


def test_only_what_was_written_whole_is_stored_to_peers() -> None:
    names = [("x", 0), ("y@0", 0), ("y@1", 1), ("y@2", 2)]
    tensors = {name: Tensor(name, (2, 12), "f32", "activation", device) for name, device in names}

    def window(tensor: str, begin: int, end: int) -> View:
        return View(tensor, (2, end - begin), (12, 1), begin, "f32")

    x = window("x", 0, 8)
    written = node("linear", x, window("y@0", 4, 12))
    whole = [node("push", window("y@0", 4, 12), window(f"y@{i}", 4, 12), name=f"p{i}") for i in (1, 2)]
    part = node("push", window("y@0", 4, 8), window("y@1", 4, 8), name="part")
    graph = direct(OpGraph("decode", 2, tensors, [written, *whole], ()))
    (only,) = graph.nodes
    assert only.outputs == tuple(window(f"y@{i}", 4, 12) for i in range(3))
    assert pushes(graph, only) == only.outputs[1:]
    assert [n.name for n in direct(OpGraph("decode", 2, tensors, [written, part], ())).nodes] == ["n", "part"]
    other = replace(written, op="rope")  # its body has one output
    assert len(direct(OpGraph("decode", 2, tensors, [other, *whole], ())).nodes) == 3


def test_stores_to_peers_are_counted_as_pushes() -> None:
    """One-shot sums: every device's partial result at every other device; only producers push them."""
    one = placed(3, reduction="one_shot")
    table = placement_table(one, CONTEXT)
    down = next(r for r in table.rows if r.operator.endswith("self_attn.o_proj"))
    assert (down.exchanges, down.pushes) == (down.layers, 6 * down.layers)
    assert down.pushed == down.pushes * SIZES["hidden_size"] * 4
    assert not [n for n in one.graph.nodes if n.op == "push" and ".partial" in n.name]


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "workers"), [(1, 9), (3, 3)])
def test_engines_with_attention_in_parts_give_the_same_logits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, devices: int, workers: int
) -> None:
    """Attention in three parts gives the logits of attention in one, in the kernel and in the interpreter."""
    source = tmp_path / "model"
    config, model, text, _, counted = draw(
        {"num_attention_heads": 3, "num_key_value_heads": 3, "index_topk": 24}, CONTEXT
    )
    model.save_pretrained(source)
    (source / "config.json").write_text(json.dumps(config))
    ids = text[: min(counted, CONTEXT)].tolist()
    logits = {}
    for name, entries in (("whole", 10**6), ("parts", 8)):
        monkeypatch.setattr(ATTENTION, "ENTRIES", entries)
        monkeypatch.setattr(ATTENTION, "UNIT", 4)
        options: dict[str, Any] = {"devices": devices, "workers": workers, "max_seq_len": CONTEXT}
        compile_model(CompileOptions(str(source), tmp_path / name, **options))
        with tilecompile.load(tmp_path / name) as engine:
            logits[name] = engine.score(ids)
    manifest = read_manifest(tmp_path / "parts")
    assert any(".part2" in name for name in manifest.data["operators"])
    assert np.abs(logits["parts"] - logits["whole"]).max() < 5e-4
    interpreted = Interpreter(tmp_path / "parts").score(ids[:12])
    np.testing.assert_allclose(interpreted, logits["parts"][:12], atol=5e-4)
