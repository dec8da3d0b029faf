"""No file outside the ops' folders names an op, and nothing parses the names of operators.

What the compiler must know of an op is a trait of its `TileOp`; where an operator comes from are fields of `OpNode`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tilecompile
import tilecompile.ops
from tilecompile.ops.base import REGISTRY

PACKAGE = Path(tilecompile.__file__).parent
DISPLAY = ("cli", "inspection", "show")
"""Packages that format for people, and may parse names for display."""

OUTSIDE = {
    "passes/trace.py": "fx nodes, and module paths of torch",
    "targets/cuda/build.py": "what ptxas prints",
    "targets/cuda/lower.py": "TileLang's source",
    "measure/calibrate/from_gpu_results.py": "names of GPUs",
    "measure/bench/ablate.py": "the order of tensors in a checkpoint",
    "runtime/cuda/options.py": "what a user asks for",
}
"""Files that use regular expressions, or words that ops have too, on other things."""


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in _files(PACKAGE):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(("ops/", *(f"{folder}/" for folder in DISPLAY))) and not name.startswith(tuple(OUTSIDE)):
            yield name, ast.parse(path.read_text())


def _files(folder: Path) -> Iterator[Path]:
    """The files of a folder and of those that it links to."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name != "__pycache__":
            yield from _files(path)
        elif path.suffix == ".py":
            yield path


def compared(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Ops' names that are compared with something, tested for membership, or keys of a table."""
    for node in ast.walk(tree):
        parts: list[ast.expr | None] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
            attributes = {part.attr for part in parts if isinstance(part, ast.Attribute)}
            if {"op", "name"} <= attributes:  # node.op == COMMIT.name
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Dict):
            parts = [*node.keys]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            parts = [*node.args] if node.func.attr in ("startswith", "endswith", "removeprefix", "removesuffix") else []
        elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Tuple | ast.Set | ast.List):
            parts = [node.value]
        for part in filter(None, parts):
            for leaf in ast.walk(part):
                if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str) and _is_op(leaf.value):
                    yield leaf.lineno, leaf.value


def _is_op(text: str) -> bool:
    """Whether a text is an op's name, or a beginning that several ops have."""
    return text in REGISTRY or (text.endswith("_") and any(name.startswith(text) for name in REGISTRY))


def expressions(tree: ast.AST) -> Iterator[int]:
    """Lines that use regular expressions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name == "re" for alias in node.names):
            yield node.lineno
        if isinstance(node, ast.ImportFrom) and node.module == "re":
            yield node.lineno


ALLOWED = {("runtime/names.py", "push")}
"""Roles of operators that are called like an op."""


def test_no_op_is_known_by_its_name() -> None:
    found = [(file, line, name) for file, tree in sources() for line, name in compared(tree)]
    assert [entry for entry in found if (entry[0], entry[2]) not in ALLOWED] == []


def test_no_names_are_taken_apart() -> None:
    assert [(file, line) for file, tree in sources() for line in expressions(tree)] == []


@pytest.mark.parametrize(
    "text",
    [
        'if node.op == "commit": pass',
        'if node.op in ("linear", "head_linear"): pass',
        'RULES = {"cache_append": 1}',
        'ENDS = ("embed", "argmax")',
        'slots = node.op.startswith("expert_")',
        "if node.op == COMMIT.name: pass",
    ],
)
def test_comparisons_with_names_are_found(text: str) -> None:
    assert list(compared(ast.parse(text)))


@pytest.mark.parametrize("text", ["import re", "from re import compile"])
def test_regular_expressions_are_found(text: str) -> None:
    assert list(expressions(ast.parse(text)))


def test_the_exceptions_are_needed() -> None:
    for name in OUTSIDE:
        files = _files(PACKAGE / name) if (PACKAGE / name).is_dir() else [PACKAGE / name]
        trees = [ast.parse(path.read_text()) for path in files]
        assert any(list(expressions(tree)) or list(compared(tree)) for tree in trees), name
