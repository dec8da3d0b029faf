"""No constant that C and Python share is defined twice: `runtime/format` owns them, and C has them from its headers."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from support.paths import ROOT
from tilecompile.runtime import format as fmt
from tilecompile.runtime.format.header import ENUMS
from tilecompile.schedules.machine import load_machine

FORMAT = "runtime/format/"
"""What may define the constants: Python here, and what C is generated from it."""

OWNED = {
    *(
        "NONE",
        "AUTO_DRAFTS",
        "FORMAT_VERSION",
        "COMMIT_KIND",
        "MAX_TOKENS",
        "BODY_TOKENS",
        "MAX_PROGRAMS",
        "MAX_DRAFTS",
        "READ",
        "WRITE",
    ),
    *("PREDICATED", "CONDITIONAL", "NEEDS_LOGITS", "REMOTE"),
    *("IDLE", "RUNNING", "STALLED", "CLOSED", "PAUSED", "NOT_FINITE", "NOTHING_ALLOWED"),
    *("NO_REASON", "STOP_ID", "MAX_NEW", "CONTEXT_FULL", "ABORTED", "BAD_ID"),
    *("PANEL", "SCALE_BLOCK", "FRAGMENT_BYTES", "FRAGMENT_COLS_BF16", "FRAGMENT_COLS_FP8", "RESIDUES"),
    *("PARTIAL_BYTES", "PREFETCH_BYTES", "KEY_WORDS", "INTERVAL_BITS", "SCORE_KEYS", "MAX_STOP_IDS"),
    *("COUNTED", "BIASED", "NOT_FINITE_ID", "NOTHING_ALLOWED_ID"),
    *("BOARD_BYTES", "LEAVE_OFFSET", "FILL_BF16", "FILL_F32", "FILL_E4M3"),
}
"""The constants of all targets that C and Python share."""

OF_BLOCKS = {
    *("LANES", "CONSUMER_WARPS", "CONSUMERS", "THREADS", "SLOT", "STAGES", "HINT_BYTES"),
    *("SHARED_BYTES", "FRONT_BYTES", "SCRATCH_BYTES", "SCRATCH_ALIGN"),
}
"""Those of the GPU kernel's blocks; a CPU's vector has LANES of its own, and its loop other HINT_BYTES."""

DISTINCT = 128
"""From here on a number is distinctive by itself."""

COINCIDENCES = {
    ("ops/kit/cuda/ring.cuh", "POLLS"): "polls between two reads of the clock",
    ("targets/cuda/worker.cuh", "EAGER_POLLS"): "polls before a block naps",
    ("targets/cpu/worker.h", "HINT_BYTES"): "what a CPU worker prefetches while it waits",
    ("targets/cpu/worker.h", "PARK_POLLS"): "polls before a thread parks",
    ("targets/cpu/profile.h", "MARKS"): "steps whose beginning a recording keeps; handed to Python by the kernel",
    ("ops/argmax/cpu.h", "ARGMAX_CHUNK"): "logits that are searched again",
    ("ops/linear/gpu.cuh", "UNSCALE"): "an offset; a static assertion compares the sum with Python's",
}
"""Constants of C that equal one of the format's and mean something else."""

NAMESAKES = {("ops/topk_select/cpu.h", "BLOCK"): "keys that are read together; elsewhere a block of the context"}
"""Constants of C that have name and value of one in Python and mean something else."""


@dataclass(frozen=True)
class Definition:
    """A constant where it is defined; `value` is None if it is no number by itself."""

    file: str
    name: str
    value: int | None


OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,  # as C divides whole numbers
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.USub: operator.neg,
}


def number(node: ast.expr) -> int | None:
    """The value of an expression of whole numbers."""
    match node:
        case ast.Constant(value=int(value)):
            return int(value)
        case ast.UnaryOp(op=op, operand=operand):
            value = number(operand)
            return None if value is None or type(op) not in OPERATORS else OPERATORS[type(op)](value)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = number(left), number(right)
            return None if a is None or b is None or type(op) not in OPERATORS else OPERATORS[type(op)](a, b)
    return None


def numbers(node: ast.expr, count: int) -> list[int | None]:
    """The values that are assigned to `count` names at once."""
    match node:
        case ast.Tuple(elts=elements) if len(elements) == count:
            return [number(element) for element in elements]
        case ast.Call(func=ast.Name(id="range"), args=[bound]) if number(bound) == count:
            return list(range(count))
    return [None] * count


def of_python(file: str, text: str) -> Iterator[Definition]:
    """The constants of a module and the members of its enums."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef):
            enum = any("Enum" in ast.unparse(base) for base in node.bases)
            members = [member for member in node.body if isinstance(member, ast.Assign)] if enum else []
            yield from (Definition(file, ast.unparse(m.targets[0]), number(m.value)) for m in members)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                values = numbers(node.value, len(names)) if isinstance(target, ast.Tuple) else [number(node.value)]
                for name, value in zip(names, values, strict=True):
                    if isinstance(name, ast.Name):
                        yield Definition(file, name.id, value)


def of_c(file: str, text: str) -> Iterator[Definition]:
    """The constants of a C++ or CUDA header: `constexpr`, members of enums, macros with a value."""
    text = re.sub(r"//.*|/\*.*?\*/", "", text)

    def value(expression: str) -> int | None:
        plain = re.sub(r"\b(0x[\da-fA-F]+|\d[\d']*)[uUlL]*\b", lambda m: str(int(m[1].replace("'", ""), 0)), expression)
        plain = re.sub(r"\b(?:u?int\d+_t|size_t|int|unsigned)\(", "(", plain)
        try:
            return number(ast.parse(plain.strip(), mode="eval").body)
        except SyntaxError:
            return None

    for declared in re.findall(r"\bconstexpr\s+(?!bool\b|auto\b)[\w:]+\s+(\w+\s*=[^;]*);", text):
        for part in re.split(r",(?=\s*\w+\s*=)", declared):
            name, _, expression = part.partition("=")
            yield Definition(file, name.strip(), value(expression))
    for members in re.findall(r"\benum\b[^{;]*\{([^}]*)\}", text):
        following = 0
        for member in filter(None, map(str.strip, members.split(","))):
            name, stated, expression = member.partition("=")
            found = value(expression) if stated else following
            following = (found or 0) + 1
            yield Definition(file, name.strip(), found)
    for name, expression in re.findall(r"^[ \t]*#define[ \t]+(\w+)[ \t]+(.+)$", text, re.MULTILINE):
        yield Definition(file, name, value(expression))


def sources() -> dict[str, str]:
    """The text of everything that is shipped, by its path."""
    found = {}
    for folder in ("tilecompile", "runtime", "models", "schedules"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".h", ".cuh") and not any(p.is_symlink() for p in path.parents):
                found[path.relative_to(ROOT).as_posix().removeprefix("tilecompile/")] = path.read_text()
    return found


def twice(texts: Mapping[str, str]) -> list[str]:
    """The forbidden definitions, a line each."""
    python = [d for f, t in texts.items() if f.endswith(".py") and not f.startswith(FORMAT) for d in of_python(f, t)]
    c = [d for f, t in texts.items() if not f.endswith(".py") for d in of_c(f, t)]
    distinct = {v: n for n, v in fmt.shared_constants().items() if v >= DISTINCT and n != "NONE"}
    shape = fmt.BLOCK
    distinct |= {shape.body_threads: "CONSUMERS", shape.threads: "THREADS", shape.slot_bytes: "SLOT"}
    distinct |= {shape.front_bytes: "FRONT_BYTES", shape.shared_bytes: "SHARED_BYTES", shape.hint_bytes: "HINT_BYTES"}
    distinct[fmt.SCRATCH_ALIGN] = "SCRATCH_ALIGN"
    wrong = [f"{d.file}: {d.name} is the format's" for d in python if d.name in OWNED and d.value is not None]
    for d in c:
        if d.name in OWNED or (d.name in OF_BLOCKS and d.file.endswith(".cuh")):
            wrong.append(f"{d.file}: {d.name} is the format's")
        elif d.value in distinct and (d.file, d.name) not in COINCIDENCES:
            wrong.append(f"{d.file}: {d.name} is {d.value}, as {distinct[d.value]} of the format")
    in_python = {(d.name, d.value): d.file for d in python if d.value is not None}
    for d in c:
        if (d.name, d.value) in in_python and (d.file, d.name) not in NAMESAKES:
            wrong.append(f"{d.file}: {d.name} is {d.value}, as in {in_python[d.name, d.value]}")
    return wrong


def test_no_constant_is_defined_twice() -> None:
    assert twice(sources()) == []


def test_the_format_owns_what_is_named_here() -> None:
    """Every one of them, and no other, is in the headers that it generates."""
    members = {member.name for enum in ENUMS for member in enum}
    assert {*fmt.shared_constants(), *members} == OWNED
    for header, names in ((fmt.c_header(), OWNED), (fmt.block_header(), OF_BLOCKS)):
        assert {d.name for d in of_c("generated.h", header)} == names


def test_coincidences_are_still_there() -> None:
    texts = sources()
    known = {(d.file, d.name) for f, t in texts.items() if not f.endswith(".py") for d in of_c(f, t)}
    assert COINCIDENCES.keys() | NAMESAKES.keys() <= known


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("ops/kit/cpu/simd.h", "constexpr int PANEL = 16;  // rows", "PANEL is the format's"),
        ("targets/cpu/worker.h", "enum State : uint32_t { IDLE = 0, BUSY };", "IDLE is the format's"),
        ("targets/cpu/loop.h", "enum { FIRST, NO_REASON };", "NO_REASON is the format's"),
        ("targets/cuda/worker.cuh", "#define SLOT 77", "SLOT is the format's"),
        ("targets/cuda/worker.cuh", "constexpr int A = 3, LANES = 2 * A;", "LANES is the format's"),
        ("ops/linear/gpu.cuh", "static constexpr int BLOCK_BYTES = 512;", "BLOCK_BYTES is 512, as FRAGMENT_BYTES of"),
        ("ops/linear/gpu.cuh", "constexpr uint32_t RING = 1u << 14;", "RING is 16384, as "),
        ("targets/cuda/build.py", "SCALE_BLOCK = 1 << 7", "SCALE_BLOCK is the format's"),
        ("runtime/kernel.py", "IDLE, RUNNING, STALLED, CLOSED = range(4)", "STALLED is the format's"),
        ("runtime/kernel.py", "class State(IntEnum):\n    CLOSED = 3", "CLOSED is the format's"),
        ("ops/argmax/__init__.py", "ARGMAX_CHUNK = 1 << 10", "ARGMAX_CHUNK is 1024, as in ops/argmax/__init__.py"),
        ("cost/simulate/parts.h", "constexpr int64_t LIMIT = 7;", "LIMIT is 7, as in measure/x.py"),
    ],
)
def test_a_second_definition_is_found(file: str, line: str, words: str) -> None:
    texts = {**sources(), "measure/x.py": "LIMIT = 7\n"}
    assert twice(texts) == []
    texts[file] = f"{texts.get(file, '')}\n{line}\n"
    found = twice(texts)
    assert any(words in wrong for wrong in found)


def test_machines_state_the_hint_of_the_loader() -> None:
    """A machine's description says what the kernel's loader fetches ahead, for the simulator."""
    paths = sorted((ROOT / "schedules" / "machines").glob("*.toml"))
    found = {path.stem: load_machine(path.stem) for path in paths}
    hints = {name: m.simulator.hint_bytes for name, m in found.items() if not m.is_cpu and m.simulator}
    assert len(hints) == 6
    assert set(hints.values()) == {fmt.BLOCK.hint_bytes}
