"""emit: kernel source from task kinds.

The source is one readable file: the records' header, the vector library, the bodies of the ops in use, one function
a task kind with its operator's name and shapes, and the resident loop. The schedule is not compiled in: the loop
executes the engine's tables.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tilecompile.ir.node import OpNode
from tilecompile.ops.base import REGISTRY, op_of
from tilecompile.runtime.folder.contract import MARK
from tilecompile.runtime.format import c_header
from tilecompile.targets.kind import Kind

Label = TypeVar("Label", bound=Hashable)

HERE = Path(__file__).parent
RULES = HERE.parent / "commit_rules.h"
"""What follows a step of a request, for all targets."""

DEPTH = HERE.parent / "draft_depth.h"
"""How many tokens a round of speculation drafts."""

KIT = Path(__file__).parents[2] / "ops" / "kit" / "cpu"

FRONT = ("simd.h", "numbers.h", "call.h", "../sampling.h")
"""What bodies are written over, in `ops/kit/cpu`, or in `ops/kit` for all targets."""

LOOP = ("worker.h", "profile.h", "sampling.h", "loop.h", "abi.h", "roof.h")
"""The resident loop and what the runtime calls, in this folder."""


def task_kinds(nodes: Mapping[Label, OpNode]) -> tuple[list[Kind], dict[Label, Kind]]:
    """One kind for each distinct body among the nodes, and the kind of each node by its label; sinks have none."""
    kinds: dict[tuple[str, str], Kind] = {}
    of_node = {}
    for label, node in nodes.items():
        if op_of(node).is_sink:
            continue
        guard = "if (!(c.step->flags & NEEDS_LOGITS)) return;\n  "
        key = (node.op, (guard if node.predicate else "") + op_of(node).cpu(node))
        if key not in kinds:
            shapes = " ".join(str(v) for v in (*node.inputs, *node.weights)) + " -> " + " ".join(map(str, node.outputs))
            kinds[key] = Kind(len(kinds) + 1, node.op, node.name, shapes, key[1])
        of_node[label] = kinds[key]
    return list(kinds.values()), of_node


def body_headers(ops: Iterable[str]) -> list[str]:
    """The ops' bodies, each after those that it builds on."""
    ordered: list[str] = []

    def visit(name: str) -> None:
        for other in REGISTRY[name].headers:
            visit(other)
        if name not in ordered:
            ordered.append(name)

    for name in ops:
        visit(name)
    return [REGISTRY[name].body() for name in ordered]


def bodies_source(kinds: list[Kind]) -> str:
    """Records, vector library, bodies, and one function a kind in the table `BODIES`."""
    parts = [c_header(), *((KIT / name).read_text() for name in FRONT)]
    parts += body_headers(dict.fromkeys(kind.op for kind in kinds))
    for kind in kinds:
        parts.append(f"// {kind.comment}\nstatic void {kind.function}(const Call& c) {{\n  {kind.statement}\n}}\n")
    table = ", ".join(["nullptr", *(kind.function for kind in kinds)])
    parts.append(f"using Body = void (*)(const Call&);\nstatic const Body BODIES[] = {{{table}}};\n")
    return "\n".join(part.replace("#pragma once\n", "") for part in parts)


def kernel_source(kinds: list[Kind], title: str, contract: Mapping[str, Any]) -> str:
    """The whole kernel: bodies, resident loop, what the runtime calls, and what it is for (`folder/contract.py`)."""
    tail = [path.read_text().replace("#pragma once\n", "") for path in (RULES, DEPTH, *(HERE / name for name in LOOP))]
    head = f"// {title}\n// One resident megakernel: task bodies specialised to shapes, and the loop over the tables.\n"
    stated = json.dumps(MARK + json.dumps(contract))
    about = f'extern "C" {{\nextern const char tc_contract[];\nconst char tc_contract[] = {stated};\n}}\n'
    return "\n".join([head, bodies_source(kinds), *tail, about])
