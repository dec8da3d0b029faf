"""Small step programs for the tests of the passes: a stand-in module, and a GLM-5 of two layers with its MTP layer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from tilecompile import ops
from tilecompile.ir.graph import OpGraph
from tilecompile.ir.program import Program
from tilecompile.ir.tasks import EventTensors
from tilecompile.models.glm5 import STATES
from tilecompile.models.glm5.config import Glm5Config
from tilecompile.models.glm5.mtp import MtpStep
from tilecompile.models.glm5.step import Glm5Step
from tilecompile.models.registry import spec_of
from tilecompile.models.spec import ModelConfig, Steps, Storage
from tilecompile.passes.events import events
from tilecompile.passes.fuse import fuse
from tilecompile.passes.place.place import place
from tilecompile.passes.schedule import schedule
from tilecompile.passes.tile import tile
from tilecompile.passes.trace import trace, trace_program
from tilecompile.targets.cpu.emit import task_kinds

HIDDEN, VOCAB = 32, 50

GLM5 = {
    "vocab_size": 150,
    "hidden_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "q_lora_rank": 40,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "index_n_heads": 2,
    "index_head_dim": 12,
    "index_topk": 8,
    "intermediate_size": 130,
    "moe_intermediate_size": 20,
    "n_routed_experts": 6,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
    "num_nextn_predict_layers": 1,
    "model_type": "glm_moe_dsa",
    "architectures": ["GlmMoeDsaForCausalLM"],
}

Middle = Callable[["Block", Tensor], Tensor]


class Block(nn.Module):
    """The layers between embedding and lm_head: `middle`, which may use the parameters and the cache here."""

    cache: Tensor
    offset: Tensor

    def __init__(self, middle: Middle) -> None:
        super().__init__()
        self.middle = middle
        for name in ("norm", "norm2", "bias"):
            self.register_parameter(name, nn.Parameter(torch.empty(HIDDEN)))
        for name in ("a", "b", "c"):
            self.register_parameter(name, nn.Parameter(torch.empty(HIDDEN, HIDDEN)))
        self.register_buffer("cache", torch.empty(2, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        return self.middle(self, x)


class Step(nn.Module):
    """Embedding, a block at the module path `layers.3.0`, lm_head, argmax."""

    def __init__(self, middle: Middle) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(VOCAB, HIDDEN))
        self.layers = nn.ModuleDict({"3": nn.Sequential(Block(middle))})
        self.head = nn.Parameter(torch.empty(VOCAB, HIDDEN))

    def forward(self, ids: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        logits = ops.linear(self.layers["3"](ops.embed(ids, self.table)), self.head)
        return logits, ops.argmax(logits)


STEPS = Steps(prefill=2, drafts=1)


def trace_step(module: nn.Module, tokens: int = 2, program: str = "decode") -> OpGraph:
    """The graph of a module that takes (ids, position) and returns (logits, next)."""
    args = tuple(torch.zeros(n, dtype=torch.int32, device="meta") for n in (tokens, 1))
    return trace(module, args, ("ids", "position"), ("logits", "next"), program, STATES)


def traced(middle: Middle, tokens: int = 2) -> OpGraph:
    """The unfused graph of a Step."""
    with torch.device("meta"):
        module = Step(middle)
    return trace_step(module, tokens)


def traced_programs(config: ModelConfig, storage: Storage, every: bool = False) -> list[OpGraph]:
    """The unfused programs of a model that take one token a step, or `every` one."""
    spec = spec_of(config)
    steps = STEPS if spec.drafts(config) else Steps()
    found = [replace(step, samples=False) for step in spec.programs(config, steps) if every or step.tokens == 1]
    return [trace_program(step, config, storage, steps) for step in found]


@functools.cache
def glm5_graphs(tokens: int = 1) -> tuple[OpGraph, ...]:
    """The unfused decode and draft programs of the small GLM-5."""
    config = Glm5Config.from_dict(GLM5)
    steps = Steps(tokens, 1)
    with torch.device("meta"):
        decode = Glm5Step(config, Storage(32), tokens, steps)
        draft = MtpStep(config, Storage(32), tokens, steps, extend=tokens > 1)
    return trace_step(decode, tokens), trace_step(draft, tokens, "draft")


def plans(graphs: tuple[OpGraph, ...], parts: int) -> list[EventTensors]:
    """The event tensors of fused graphs, on one device."""
    return [events(tile(place(g, "single", 1), parts)) for g in graphs]


def scheduled(graphs: tuple[OpGraph, ...], workers: int, fused: bool = False) -> Program:
    """The schedule of graphs, which are fused first unless they are."""
    graphs = graphs if fused else tuple(fuse(g) for g in graphs)
    kinds, of_node = task_kinds({(g.program, n.name): n for g in graphs for n in g.nodes})
    kind_of = {(g.program, n.name): 0 for g in graphs for n in g.nodes} | {k: v.index for k, v in of_node.items()}
    return schedule(plans(graphs, workers), workers, kind_of, ["commit", *(k.function for k in kinds)])


@functools.cache
def glm5_program(workers: int) -> Program:
    """Both programs of the small GLM-5, scheduled."""
    return scheduled(glm5_graphs(), workers)
