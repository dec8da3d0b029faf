"""No file outside the ops' folders knows an op by its name, and nothing takes the names of operators or tensors apart.

What the compiler must know of an op is a trait of its `TileOp`; where an operator or a tensor comes from are fields of
`OpNode` and `Tensor`.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

import tilecompile
import tilecompile.ops
from tilecompile.ops.base import REGISTRY

PACKAGE = Path(tilecompile.__file__).parent
DISPLAY = ("cli", "inspection", "show")
"""Packages that format for people, and may parse names for display."""

METHODS = {
    *("partition", "rpartition", "split", "rsplit", "replace"),
    *("startswith", "endswith", "removeprefix", "removesuffix"),
}
"""Methods of texts that look into them."""

NAMES = {
    *("name", "names", "tensor", "tensors", "origin", "undivided", "stem", "family"),
    *("op", "ops", "operator", "operators", "kind", "kinds"),
}
"""What variables and fields that hold names of operators and tensors are called, in full or behind an underscore."""

Place = tuple[str, str]
"""A file and what in it: a function, with its class or the function around it, or a variable of the module."""

ALLOWED = {
    ("runtime/names.py", "the one place that knows how a name shows the layer, and roles called like an op"): (
        *("OP", "in_layer", "without_layer", "by_layer", "within_layer"),
    ),
    ("passes/trace.py", "makes the names of operators, of torch's operators, modules and parameters"): (
        *("_Tracer.tile_op", "_module_path"),
    ),
    ("passes/place/copies.py", "makes the name of a push"): ("Copies.fetch",),
    ("ir/graph.py", "the text of a graph, for people"): ("OpGraph._line",),
    ("runtime/replay/buffers.py", "finds the operator that a user's OP@LAYER means"): ("find_operator",),
    ("runtime/replay/selections.py", "names of arrays in a file"): ("Selections.of",),
    ("runtime/folder/manifest.py", "names of files"): ("write_manifest",),
    ("runtime/cuda/options.py", "what a user asks for"): ("random_seed",),
    ("runtime/cuda/device.py", "the architecture in the name of a target"): ("_check_gpu",),
    ("cost/step_time/spans.py", "engine.json states a task kind by the name of its function alone"): ("op_of",),
    ("interpret/evaluate.py", "a message in one line"): ("Evaluator.run",),
    ("verify/proof.py", "columns of tables"): ("_of",),
    ("models/checkpoint.py", "names of tensors in a checkpoint"): ("Folder.elsewhere", "Folder.unused"),
    ("models/prefix.py", "names of tensors in a checkpoint"): ("model_names", "_found", "_own", "prefixes"),
    ("models/stored.py", "names of tensors in a checkpoint"): ("Finder.find", "Finder._nvfp4"),
    ("models/glm5/__init__.py", "names of parameters in a checkpoint"): ("_held", "_spare"),
    ("sources.py", "the name of an option"): ("_chosen",),
    ("models/glm5/parameters.py", "names of parameters in a checkpoint"): ("spread",),
    ("models/glm5/peer.py", "names of parameters in a checkpoint"): ("value",),
    ("measure/bench/ablate.py", "the order of tensors in a checkpoint"): ("_natural",),
    ("measure/peers/__init__.py", "the architecture in the name of a target"): ("device_of",),
    ("measure/calibrate/from_gpu_results.py", "names of GPUs"): ("_is",),
    ("measure/warmup/marks.py", "names of files"): ("files",),
    ("targets/cpu/build.py", "the file of a library"): ("build",),
    ("targets/cpu/emit.py", "C++ sources"): ("bodies_source", "kernel_source"),
    ("targets/cuda/build.py", "what ptxas prints, and PTX"): (
        *("_PROPERTIES", "_USED", "_STACK", "_SHARED", "_INSTRUCTION"),
        *("parse_log", "instructions", "check_instructions"),
    ),
    ("targets/cuda/lower.py", "TileLang's source"): (
        *("KERNEL", "REDUCE", "WORKSPACE", "WORKSPACE_DECLARED", "SHARED"),
        *("rewrite", "_one_workspace", "_reduction", "parameters_of"),
    ),
}
"""What may look into texts all the same: by file and reason, the functions and variables."""


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in _files(PACKAGE):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(("ops/", *(f"{folder}/" for folder in DISPLAY))):
            yield name, ast.parse(path.read_text())


def _files(folder: Path) -> Iterator[Path]:
    """The files of a folder and of those that it links to."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name != "__pycache__":
            yield from _files(path)
        elif path.suffix == ".py":
            yield path


def places(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """The functions of a module by their qualified names, and its other statements by the variables that they set."""

    def within(body: list[ast.stmt], outer: str) -> Iterator[tuple[str, ast.AST]]:
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield from within(node.body, f"{outer}{node.name}.")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{outer}{node.name}", node
            else:
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                first = next((n.id for t in targets if t for n in ast.walk(t) if isinstance(n, ast.Name)), "module")
                yield f"{outer}{first}", node

    yield from within(tree.body, "")


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
            parts = [*node.args] if node.func.attr in METHODS else []
        elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Tuple | ast.Set | ast.List):
            parts = [node.value]
        for part in filter(None, parts):
            for leaf in ast.walk(part):
                if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str) and _is_op(leaf.value):
                    yield leaf.lineno, leaf.value


def _is_op(text: str) -> bool:
    """Whether a text is an op's name, or a beginning that several ops have."""
    return text in REGISTRY or (text.endswith("_") and any(name.startswith(text) for name in REGISTRY))


def expressions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Uses of regular expressions, and imports that hide them: of functions of `re`, or under another name."""
    for node in ast.walk(tree):
        hidden = isinstance(node, ast.Import) and any(a.name == "re" and a.asname for a in node.names)
        hidden |= isinstance(node, ast.ImportFrom) and node.module == "re"
        if hidden or (isinstance(node, ast.Attribute) and ast.unparse(node.value) == "re"):
            yield node.lineno, ast.unparse(node)


def taken_apart(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Calls of METHODS on names, and on what the same function made of names, item by item or as a whole."""
    derived: set[str] = set()

    def of_names(node: ast.AST) -> bool:
        """Whether an expression has a name in it, but for what it only passes to a call."""
        if isinstance(node, ast.Call):
            passed = node.args if isinstance(node.func, ast.Name) else []
            return of_names(node.func) or any(map(of_names, passed))
        if isinstance(node, ast.Attribute):
            return _called_a_name(node.attr) or of_names(node.value)
        if isinstance(node, ast.Name):
            return _called_a_name(node.id) or node.id in derived
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and node.slice.value in NAMES:
            return True
        return any(map(of_names, ast.iter_child_nodes(node)))

    while True:
        before = len(derived)
        for node in ast.walk(tree):
            value = node.iter if isinstance(node, ast.For | ast.comprehension) else getattr(node, "value", None)
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr | ast.For | ast.comprehension):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if value is not None and of_names(value):
                    derived |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
        if len(derived) == before:
            break
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr not in METHODS:
            continue
        if of_names(node.value) or ast.unparse(node.value) == "str":  # of what, str.split doesn't say
            yield node.lineno, ast.unparse(node)


def _called_a_name(variable: str) -> bool:
    return variable in NAMES or variable.rpartition("_")[2] in NAMES


CHECKS = {"compares": compared, "uses": expressions, "takes apart": taken_apart}


@functools.cache
def found() -> dict[Place, list[str]]:
    """All that the product has of what is looked for, by place."""
    everything: dict[Place, list[str]] = {}
    for file, tree in sources():
        for part, node in places(tree):
            here = [f"line {line} {what} {text}" for what, check in CHECKS.items() for line, text in check(node)]
            if here:
                everything.setdefault((file, part), []).extend(here)
    return everything


def allowed() -> set[Place]:
    return {(file, part) for (file, _), parts in ALLOWED.items() for part in parts}


def test_names_are_for_people() -> None:
    assert {place: what for place, what in found().items() if place not in allowed()} == {}


def test_the_exceptions_are_needed() -> None:
    assert allowed() - set(found()) == set()


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


@pytest.mark.parametrize("text", ["import re as r", "from re import compile", "re.sub('@.*', '', name)", "re.I"])
def test_regular_expressions_are_found(text: str) -> None:
    assert list(expressions(ast.parse(text)))


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize(
    "text",
    [
        "node.name.METHOD('@')",
        "graph.tensors[view.tensor].origin.METHOD('@')",
        "str(operator.name).METHOD('@')",
        "operators[op].METHOD('@')",
        "tensor_name[1:].METHOD('@')",
        "node.name.lower().METHOD('@')",
        "f'{node.name}.sum'.METHOD('@')",
        "word = node.undivided\nword.METHOD('@')",
        "for word in names: word.METHOD('@')",
        "found = [word.METHOD('@') for word in manifest.data['operators']]",
        "for index, word in enumerate(program.operators):\n    last = word\n    last.METHOD('@')",
        "if (word := view.tensor): word.METHOD('@')",
        "cut = node.name.METHOD",
        "map(str.METHOD, names)",
    ],
)
def test_names_that_are_taken_apart_are_found(text: str, method: str) -> None:
    assert list(taken_apart(ast.parse(text.replace("METHOD", method))))


@pytest.mark.parametrize(
    "text", ["line.split(':')", "replace(node, name=name)", "text.replace('a', name)", "file.read().split()"]
)
def test_other_texts_may_be_taken_apart(text: str) -> None:
    assert not list(taken_apart(ast.parse(text)))


def test_an_exception_is_for_one_function_alone() -> None:
    text = "def cut(name):\n    return name.split('@')\n"
    tree = ast.parse(f"{text}class Names:\n    {text.replace(chr(10), chr(10) + '    ')}\nENDS = name.split('@')")
    assert [part for part, node in places(tree) if list(taken_apart(node))] == ["cut", "Names.cut", "ENDS"]
