"""Rewrites of the graph: each keeps what the step computes, and leaves alone what others see."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from support.graph_eval import evaluate, random_tensors
from support.small import GLM5, Block, Middle, Step, glm5_graphs, trace_step, traced
from tilecompile import ops
from tilecompile.ir.expr import leaves
from tilecompile.ir.graph import OpGraph
from tilecompile.models.glm5.config import Glm5Config
from tilecompile.models.glm5.step import Glm5Step
from tilecompile.models.spec import Storage
from tilecompile.passes.fuse import MAX_LEAVES, REWRITES, compose_maps, fold_epilogue, fold_norm, fuse, predicate_logits
from tilecompile.passes.order import by_depth
from tilecompile.passes.trace import trace


def same(before: OpGraph, after: OpGraph, seed: int = 0) -> None:
    """Asserts that both graphs compute the same outputs and leave the same caches."""
    tensors = random_tensors(before, seed)
    old, new = evaluate(before, tensors), evaluate(after, tensors)
    assert after.outputs == before.outputs
    for name in (*before.outputs, *(n for n, t in before.tensors.items() if t.role == "cache")):
        a, b = old[name], new[name]
        assert a.dtype == b.dtype
        if a.is_floating_point():
            assert bool(a.isfinite().all())
            error = float((a - b).abs().max() / a.square().mean().sqrt())
            assert error <= 1e-6, f"{name}: {error:.1e}"
        else:
            assert torch.equal(a, b), name


def in_order(graph: OpGraph) -> None:
    """Asserts that every activation is written once, and before it is read."""
    written: set[str] = set()
    for node in graph.nodes:
        for view in (*node.inputs, *node.weights):
            assert graph.tensors[view.tensor].role != "activation" or view.tensor in written, f"{node.name}: {view}"
        for view in node.outputs:
            assert view.tensor not in written
            written.add(view.tensor)


def operators(graph: OpGraph) -> list[str]:
    """Op names between embedding and lm_head."""
    names = [n.op for n in graph.nodes if n.op not in ("argmax", "commit")]
    return names[1:-1]


def mlp(m: Block, x: Tensor) -> Tensor:
    h = ops.rms_norm(x, m.norm, 1e-5)
    y: Tensor = x + ops.linear(F.silu(ops.linear(h, m.a)) * ops.linear(h, m.b), m.c)
    return y


def normed_twice(m: Block, x: Tensor) -> Tensor:
    h = ops.rms_norm(x, m.norm, 1e-5)
    y: Tensor = ops.linear(h, m.a) + h
    return y


def shared_value(m: Block, x: Tensor) -> Tensor:
    y = torch.tanh(x)
    z: Tensor = ops.linear(y * 2.0, m.a) + ops.linear(y + 1.0, m.b)
    return z


def diamond(m: Block, x: Tensor) -> Tensor:
    y = torch.tanh(x)
    z: Tensor = (y * 2.0 + 1.0) * (y - 3.0)
    return z


def part_of_a_product(m: Block, x: Tensor) -> Tensor:
    gate, up = ops.linear(x, m.a).split([16, 16], dim=1)
    y = F.silu(gate) * up
    z: Tensor = ops.linear(y.unsqueeze(1).squeeze(1), m.c[:, :16]) if False else y
    return torch.maximum(z, x[:, :16])


def chain(m: Block, x: Tensor) -> Tensor:
    """Residuals one after the other, as in a mixture of experts: each sum can take one product."""
    y: Tensor = (x + ops.linear(x, m.a)) + ops.linear(torch.tanh(x), m.b)
    return y


def other_eps(m: Block, x: Tensor) -> Tensor:
    a = ops.linear(ops.rms_norm(x, m.norm, 1e-5), m.a)
    b = ops.linear(ops.rms_norm(x, m.norm2, 1e-3), m.b)
    y: Tensor = F.silu(a) * b
    return y


def strided_extra(m: Block, x: Tensor) -> Tensor:
    y: Tensor = ops.linear(x[:, :16], m.a16) + x.view(x.shape[0], 16, 2)[:, :, 1:2].squeeze(2)  # type: ignore[operator]
    return y


def norm_of_a_window(m: Block, x: Tensor) -> Tensor:
    y: Tensor = ops.linear(ops.rms_norm(x[:, 8:24], m.norm16, 1e-5), m.a16)  # type: ignore[arg-type]
    return y


def powers(m: Block, x: Tensor) -> Tensor:
    """Each value is used twice: written out, the expression would double at every line."""
    for _ in range(14):
        x = x * x * 0.5 + 0.9
        x = torch.tanh(x)
    return x


BLOCKS: dict[str, tuple[Middle, list[str]]] = {
    "mlp": (mlp, ["linear", "linear"]),
    "norm also read by a residual": (normed_twice, ["rms_norm", "linear"]),
    "value read twice": (shared_value, ["map", "map", "map", "linear", "linear"]),
    "diamond": (diamond, ["map"]),
    "chain of residuals": (chain, ["linear", "map", "linear"]),
    "different norms": (other_eps, ["linear", "linear"]),
}


class Narrow(Step):
    """A block whose result is 16 wide, with weights to match."""

    def __init__(self, middle: Middle) -> None:
        super().__init__(middle)
        block = self.layers["3"][0]
        block.a16 = torch.nn.Parameter(torch.empty(16, 16))
        block.norm16 = torch.nn.Parameter(torch.empty(16))
        self.head = torch.nn.Parameter(torch.empty(50, 16))


def narrow(middle: Middle) -> OpGraph:
    with torch.device("meta"):
        return trace_step(Narrow(middle))


NARROW = {
    "part of a product": (part_of_a_product, ["linear", "map"]),
    "residual with elements apart": (strided_extra, ["linear", "map"]),
    "norm of a window": (norm_of_a_window, ["linear"]),
}


@pytest.mark.parametrize("name", [*BLOCKS, *NARROW])
def test_fuse_keeps_the_values_of_a_block(name: str) -> None:
    middle, want = (BLOCKS | NARROW)[name]
    before = narrow(middle) if name in NARROW else traced(middle)
    after = fuse(before)
    assert operators(after) == want
    in_order(after)
    same(before, after)


def test_composed_expressions_stay_below_the_limit() -> None:
    before = traced(powers)
    after = compose_maps(before)
    maps = [n for n in after.nodes if n.op == "map"]
    assert len(maps) < sum(n.op == "map" for n in before.nodes)
    assert all(leaves(n.attrs["expr"]) <= MAX_LEAVES for n in maps)
    same(before, after)


@pytest.mark.parametrize("rewrite", [*REWRITES, fuse], ids=lambda r: r.__name__)
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("program", [0, 1], ids=["decode", "draft"])
def test_each_rewrite_keeps_the_values_of_glm5(
    rewrite: Callable[[OpGraph], OpGraph], tokens: int, program: int
) -> None:
    before = glm5_graphs(tokens)[program]
    after = rewrite(before)
    in_order(after)
    same(before, after, seed=tokens)


def test_glm5_is_fused_as_far_as_it_goes() -> None:
    """No elementwise operator is left, and no norm but those whose result is stored."""
    after = fuse(glm5_graphs()[0])
    assert [n.name for n in after.nodes if n.op == "map"] == []
    readers = after.consumers()
    norms = [n for n in after.nodes if n.op == "rms_norm"]
    assert all({"cache_append", "keep"} & {r.op for r in readers[n.outputs[0].tensor]} for n in norms)


class Outputs(Step):
    """Everything that could be folded is an output too."""

    def forward(self, ids: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        x = ops.embed(ids, self.table)
        m = self.layers["3"][0]
        h = ops.rms_norm(x, m.norm, 1e-5)
        product = ops.linear(h, m.a)
        gate = F.silu(product)
        logits = ops.linear(gate * 2.0, self.head)
        return logits, ops.argmax(logits), h, product, gate


def test_outputs_are_not_folded_away() -> None:
    with torch.device("meta"):
        module = Outputs(lambda m, x: x)
    args = tuple(torch.zeros(n, dtype=torch.int32, device="meta") for n in (2, 1))
    before = trace(module, args, ("ids", "position"), ("logits", "next", "h", "product", "gate"), "decode")
    after = fuse(before)
    assert [n.op for n in after.nodes] == [n.op for n in before.nodes]
    same(before, after)


def cache_between(order: int) -> Middle:
    """Values of a cache taken before it is written to, and used after."""

    def norm(m: Block, x: Tensor) -> Tensor:
        h = ops.rms_norm(m.cache, m.norm, 1e-5)
        ops.cache_append(m.cache, x, m.zero, 0)  # type: ignore[arg-type]
        return ops.linear(h, m.a)

    def inlined(m: Block, x: Tensor) -> Tensor:
        y = m.cache * 2.0
        ops.cache_append(m.cache, x, m.zero, 0)  # type: ignore[arg-type]
        return y + x

    def product(m: Block, x: Tensor) -> Tensor:
        y = ops.linear(m.cache, m.a)
        ops.cache_append(m.cache, x, m.zero, 0)  # type: ignore[arg-type]
        return F.relu(y)

    return (norm, inlined, product)[order]


@pytest.mark.parametrize("order", range(3), ids=["norm", "map", "epilogue"])
def test_reads_of_a_cache_do_not_move_past_its_writes(order: int) -> None:
    with torch.device("meta"):
        module = Step(cache_between(order))
        module.layers["3"][0].register_buffer("zero", torch.zeros(1, dtype=torch.int32))
    before = trace_step(module)
    tensors = random_tensors(before, 1)
    tensors["layers.3.0.zero"] = torch.zeros(1, dtype=torch.int32)
    a, b = evaluate(before, tensors), evaluate(fuse(before), tensors)
    assert torch.allclose(a[before.outputs[0]], b[before.outputs[0]], rtol=1e-6)


def test_gates_cover_what_only_the_logits_need() -> None:
    with torch.device("meta"):
        step = Glm5Step(Glm5Config.from_dict(GLM5), Storage(32))  # which keeps no hidden rows for drafts
    after = predicate_logits(trace_step(step, 1))
    gated = [n for n in after.nodes if n.attrs.get("predicate")]
    free = [n for n in after.nodes if not n.attrs.get("predicate")]
    names = {v.tensor for n in gated for v in n.outputs}
    assert not any(v.tensor in names for n in free if n.op != "commit" for v in n.inputs)
    assert {n.op for n in gated} >= {"argmax", "linear"}
    assert not any(n.op in ("cache_append", "commit") for n in gated)
    # All of the last layer after its caches is for the logits alone.
    assert {n.layer for n in gated} == {None, 1}


def test_norm_and_epilogue_are_folded_by_their_own_rewrites() -> None:
    before = traced(mlp)
    normed = fold_norm(before)
    assert [n.attrs.get("norm") for n in normed.nodes if n.op == "linear"] == [1e-5, 1e-5, None, None]
    same(before, normed)
    fused = fold_epilogue(compose_maps(before))
    pair = next(n for n in fused.nodes if len(n.weights) == 2)
    assert pair.attrs["epilogue"] == ("mul", ("silu", ("acc", 0)), ("acc", 1))
    same(before, fused)


def test_fused_operators_are_sorted_by_depth() -> None:
    """Independent work comes before what waits; a cache's writer stays before its readers; the sink is last."""
    graph = fuse(glm5_graphs()[0])
    place = {node.name: i for i, node in enumerate(graph.nodes)}
    prefix = "model.layers.0.self_attn."
    assert place[prefix + "kv_a_proj_with_mqa"] < place[prefix + "q_b_proj"]
    assert place[prefix + "cache_append.2"] < place[prefix + "mla_attention"]
    assert graph.nodes[-1].op == "commit"
    assert {n.name for n in graph.nodes} == {n.name for n in by_depth(graph).nodes}
