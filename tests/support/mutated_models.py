"""Models whose tables are mutated: small GLM-5s, some of which write their scratch buffers more than once."""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import replace
from typing import Any

from support.small import GLM5, traced_programs
from tilecompile.ir.graph import OpGraph
from tilecompile.ir.node import OpNode, View
from tilecompile.models.glm5.config import Glm5Config
from tilecompile.models.spec import Storage
from tilecompile.passes.fuse import fuse

ODD = {
    "num_attention_heads": 5,
    "hidden_size": 120,
    "n_routed_experts": 7,
    "num_experts_per_tok": 3,
    "q_lora_rank": 45,
    "kv_lora_rank": 35,
    "intermediate_size": 133,
    "moe_intermediate_size": 49,
}
MODELS: dict[str, tuple[dict[str, Any], bool]] = {
    "tiny": ({}, False),
    "tiny reusing": ({}, True),
    "odd": ({**ODD, "num_hidden_layers": 3}, False),
    "odd reusing": ({**ODD, "num_nextn_predict_layers": 0}, True),
    "every program": ({"num_hidden_layers": 1, "index_share_for_mtp_iteration": True}, False),
    "shared": ({"num_hidden_layers": 4, "index_topk_pattern": "FSFS", "num_nextn_predict_layers": 0}, False),
}
"""What differs from `small.GLM5`, and whether buffers are written more than once: see `spared` and `reusing`."""


@functools.cache
def graphs(model: str) -> tuple[OpGraph, ...]:
    """The step programs of a model."""
    config = Glm5Config.from_dict({**GLM5, **MODELS[model][0]})
    out = traced_programs(config, Storage(32), every=model == "every program")
    return tuple(reusing(spared(fuse(g))) if MODELS[model][1] else fuse(g) for g in out)


def spared(graph: OpGraph) -> OpGraph:
    """The graph with operators that run twice, the second time unused: those overwrite each other unread."""
    out = OpGraph(graph.program, graph.tokens, dict(graph.tensors), [], graph.outputs)
    for node in graph.nodes:
        out.nodes.append(node)
        if not node.weights and len(node.outputs) == 1:
            old = graph.tensors[node.outputs[0].tensor]
            name = f"%spare.{old.dtype}.{'.'.join(map(str, old.shape))}"
            out.tensors[name] = replace(old, name=name)
            view = replace(node.outputs[0], tensor=name)
            out.nodes.append(replace(node, name=f"{node.name}.spare", outputs=(view,)))
    return out


def reusing(graph: OpGraph) -> OpGraph:
    """The graph with activations in the place of earlier ones of their shape that no operator reads any more."""
    last = {v.tensor: k for k, node in enumerate(graph.nodes) for v in (*node.inputs, *node.outputs)}
    free: dict[object, list[str]] = defaultdict(list)
    name: dict[str, str] = {}

    def renamed(view: View) -> View:
        return replace(view, tensor=name.get(view.tensor, view.tensor))

    nodes: list[OpNode] = []
    for k, node in enumerate(graph.nodes):
        for v in node.outputs:
            tensor = graph.tensors[v.tensor]
            places = free[tensor.shape, tensor.dtype]
            if tensor.role == "activation" and v.tensor not in name and places:
                name[v.tensor] = places.pop(0)
        inputs, outputs = (tuple(map(renamed, views)) for views in (node.inputs, node.outputs))
        nodes.append(replace(node, inputs=inputs, outputs=outputs))
        for v in {v.tensor: v for v in node.operands}.values():
            tensor = graph.tensors[v.tensor]
            if tensor.role == "activation" and last[v.tensor] == k and v.tensor not in graph.outputs:
                free[tensor.shape, tensor.dtype].append(name.get(v.tensor, v.tensor))
    out = graph.replaced(nodes)
    return OpGraph(out.program, out.tokens, out.tensors, out.nodes, tuple(name.get(o, o) for o in out.outputs))
