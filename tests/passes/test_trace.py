"""Tracing: what is mapped becomes nodes and windows, and all else is refused with name, path and shapes."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.small import HIDDEN, Block, Middle, Step, trace_step, traced
from tilecompile import ops
from tilecompile.errors import InputError
from tilecompile.passes.fuse import fuse
from tilecompile.targets.cpu.emit import bodies_source, task_kinds

REFUSED: dict[str, tuple[Middle, str]] = {
    "unmapped": (lambda m, x: torch.sin(x), r"aten\.sin\.default at layers\.3\.0 with shapes \[\[2, 32\]\]: no map"),
    "broadcast": (
        lambda m, x: x + m.bias,
        r"aten\.add\.Tensor at layers\.3\.0 with shapes \[\[2, 32\], \[32\]\].*broad",
    ),
    "alpha": (lambda m, x: torch.add(x, x, alpha=2), r"aten\.add\.Tensor at layers\.3\.0 .*alpha"),
    "exact gelu": (lambda m, x: F.gelu(x), r"aten\.gelu\.default at layers\.3\.0 .*approximate='tanh'"),
    "transposed weight": (lambda m, x: ops.linear(x, m.a.t()), r"aten\.t\.default at layers\.3\.0 .*\[\[32, 32\]\]"),
    "transposed view": (lambda m, x: x.view(2, 4, 8).transpose(1, 2), r"aten\.transpose\.int at layers\.3\.0"),
    "rows cut": (lambda m, x: x[:1], r"aten\.slice\.Tensor at layers\.3\.0 with shapes \[\[2, 32\]\].*rows"),
    "rows merged": (lambda m, x: x.view(1, 64), r"aten\.view\.default at layers\.3\.0 with shapes \[\[2, 32\]\]"),
    "stepped": (lambda m, x: x[:, ::2], r"aten\.slice\.Tensor at layers\.3\.0"),
    "copied": (lambda m, x: x[:, 3:9].contiguous(), r"aten\.contiguous\.default at layers\.3\.0"),
    "in place": (lambda m, x: x.mul_(2), r"aten\.mul_\.Tensor at layers\.3\.0"),
    "reduction": (lambda m, x: x + x.sum(-1, keepdim=True), r"aten\.sum\.dim_IntList at layers\.3\.0"),
    "infinite": (lambda m, x: x + float("inf"), r"aten\.add\.Tensor at layers\.3\.0 .*number inf"),
    "part of a weight": (lambda m, x: ops.linear(x[:, :16], m.a[:, :16]), r"linear\.default at .*whole parameter"),
    "computed weight": (lambda m, x: ops.linear(x, x), r"linear\.default at layers\.3\.0 .*whole parameter"),
    "elements apart": (
        lambda m, x: ops.linear(x.view(2, 16, 2)[:, :, 0:1].squeeze(2), m.c),
        r"linear\.default at layers\.3\.0 .*whose elements are contiguous",
    ),
    "made while running": (lambda m, x: x * torch.ones(2, HIDDEN, device="meta"), r"aten\.ones\.default at layers\.3"),
    "lifted": (lambda m, x: x * torch.tensor(2.0, device="meta"), r"lifted_tensor.* makes while it runs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_mapping_is_refused_by_name(case: str) -> None:
    middle, message = REFUSED[case]
    with pytest.raises(InputError) as caught:
        traced(middle)
    text = str(caught.value)
    assert re.search(message, text), text
    assert "\n" not in text


class Wrong(Step):
    """Returns something else than an operator's whole result."""

    def forward(self, ids: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        logits, token = super().forward(ids, position)
        return logits[:, :4], token


def test_part_of_a_result_is_no_output() -> None:
    with torch.device("meta"):
        module = Wrong(lambda m, x: x)
    with pytest.raises(InputError, match=r"output logits is %head.*want an operator's whole result"):
        trace_step(module)


def test_parameters_of_unknown_types_are_refused() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.empty(8, 4, dtype=torch.float16))

        def forward(self, ids: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
            x = ops.embed(ids, self.table)
            return x, ops.argmax(x)

    with torch.device("meta"):
        module = Half()
    with pytest.raises(InputError, match=r"table .*torch\.float16 has no mapping"):
        trace_step(module)


VIEWS: dict[str, Middle] = {
    "slice": lambda m, x: x[:, 5:21],
    "negative slice": lambda m, x: x[:, -9:-1],
    "split": lambda m, x: x.split([7, 20, 5], dim=1)[1],
    "split by size": lambda m, x: x.split(12, dim=-1)[2],
    "heads": lambda m, x: x.view(2, 4, 8)[:, 1:2].reshape(2, 8),
    "head part": lambda m, x: x.view(2, 4, 8).split([3, 5], dim=2)[1],
    "unsqueeze": lambda m, x: x.unsqueeze(1),
    "unsqueeze last": lambda m, x: x[:, None, 4:],
    "squeeze": lambda m, x: x.view(2, 1, 32).squeeze(1),
    "squeeze of a longer dimension": lambda m, x: x.view(2, 4, 8).squeeze(1),
    "view with -1": lambda m, x: x.view(2, -1, 16),
    "nested": lambda m, x: x[:, 4:28].view(2, 3, 8)[:, 1:, 2:7],
    "whole": lambda m, x: x[:, :].contiguous(),
}


@pytest.mark.parametrize("case", VIEWS)
def test_views_are_windows_of_their_tensor(case: str) -> None:
    """Strides and offset show the same elements as torch's own view of a contiguous tensor."""

    class Probe(Step):
        def forward(self, ids: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
            x = ops.embed(ids, self.table)
            shown = self.layers["3"](x)
            turned = ops.rope(shown if shown.dim() == 3 else shown[:, None], ops.rope_angles(position, self.freq, 2))
            return turned, ops.argmax(x)

    with torch.device("meta"):
        module = Probe(VIEWS[case])
        module.register_buffer("freq", torch.empty(1))
    graph = trace_step(module)
    got = next(n for n in graph.nodes if n.op == "rope").inputs[0]
    base = torch.arange(2 * HIDDEN, dtype=torch.float32).view(2, HIDDEN)
    want = VIEWS[case](Block(VIEWS[case]), base)
    assert torch.equal(torch.as_strided(base, got.shape, got.strides, got.offset).reshape(want.shape), want)
    assert got.tensor == graph.nodes[0].outputs[0].tensor


class Twice(Step):
    """Uses the weight `w` twice and has a neighbour whose name is what a number would make of it."""

    def __init__(self) -> None:
        super().__init__(lambda m, x: x)
        self.w = nn.Sequential()
        self.w.weight = nn.Parameter(torch.empty(HIDDEN, HIDDEN))
        self.w.add_module("2", nn.Linear(HIDDEN, HIDDEN, bias=False))

    def forward(self, ids: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        x = ops.embed(ids, self.table)
        for weight in (self.w.weight, self.w.weight, self.w[0].weight, self.w[0].weight):
            x = ops.linear(x, weight)
        logits = ops.linear(x, self.head)
        return logits, ops.argmax(logits)


def test_operator_names_are_unique() -> None:
    with torch.device("meta"):
        graph = trace_step(Twice())
    names = [n.name for n in graph.nodes]
    assert len(set(names)) == len(names)
    assert len(graph.producer()) == sum(len(n.outputs) for n in graph.nodes)


class Cached(Step):
    """Appends to a cache, and has its embedding table as lm_head too."""

    def forward(self, ids: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        x = self.layers["3"](ops.embed(ids, self.table))
        ops.cache_append(self.layers["3"][0].cache, x, position, 0)
        logits = ops.linear(x, self.table)
        return logits, ops.argmax(logits)


def test_tensors_have_the_roles_of_their_use() -> None:
    with torch.device("meta"):
        graph = trace_step(Cached(lambda m, x: ops.rms_norm(x, m.norm, 1e-5)))
    roles = {name: t.role for name, t in graph.tensors.items() if t.role != "activation"}
    unused = {f"layers.3.0.{n}" for n in ("norm2", "bias", "a", "b", "c")} | {"head"}
    assert {name: role for name, role in roles.items() if name not in unused} == {
        "table": "weight",
        "layers.3.0.norm": "constant",
        "layers.3.0.cache": "cache",
        "ids": "input",
        "position": "input",
    }
    assert [n.op for n in graph.nodes] == ["embed", "rms_norm", "cache_append", "linear", "argmax", "commit"]


def source_of(activation: Middle) -> str:
    """The kernel of a gated MLP with some activation."""

    def middle(m: Block, x: Tensor) -> Tensor:
        h = ops.rms_norm(x, m.norm, 1e-5)
        y: Tensor = x + ops.linear(activation(m, ops.linear(h, m.a)) * ops.linear(h, m.b), m.c)
        return y

    graph = fuse(traced(middle))
    kinds, _ = task_kinds({n.name: n for n in graph.nodes})
    return bodies_source(kinds)


def test_another_activation_changes_the_kernel_and_nothing_else() -> None:
    sources = {
        "silu(acc0)": source_of(lambda m, x: F.silu(x)),
        "gelu_tanh(acc0)": source_of(lambda m, x: F.gelu(x, approximate="tanh")),
        "relu(acc0)": source_of(lambda m, x: F.relu(x)),
        "mul(acc0, sigmoid(mul(acc0, splat(1.702f))))": source_of(lambda m, x: x * torch.sigmoid(x * 1.702)),
    }
    for text, source in sources.items():
        assert f"mul({text}, acc1)" in source
        for other in sources.values():
            changed = set(source.splitlines()) ^ set(other.splitlines())
            code = [line for line in changed if not line.startswith("//")]
            assert len(code) == (0 if other is source else 2), code


def test_constants_and_repeated_operands_become_expressions() -> None:
    graph = traced(lambda m, x: (x * x) / 3 - 0.5)
    exprs = [n.attrs["expr"] for n in graph.nodes if n.op == "map"]
    assert exprs == [
        ("mul", ("in", 0), ("in", 0)),
        ("div", ("in", 0), ("const", 3.0)),
        ("sub", ("in", 0), ("const", 0.5)),
    ]
    assert [n.layer for n in graph.nodes if n.op == "map"] == [3, 3, 3]
