"""Lowering of TileLang bodies to CUDA device functions for the persistent loop.

TileLang makes a kernel of its own. `rewrite` turns it into a function that the consumer threads of the resident kernel
call, and refuses all that it doesn't know, so that another version of TileLang can't slip something in. Lowering takes
most of a compilation's time, so results are cached under a key that is known before it: the text of all bodies, the
values that the body depends on, the flags, the architecture and TileLang's version.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilecompile.ops.base import REGISTRY
from tilecompile.ops.kit.body import THREADS, Flavor, TileBody
from tilecompile.runtime.format import BLOCK, SCRATCH_ALIGN, shared_constants
from tilecompile.targets.cuda.compile_cache import cached, key_of

CONFIG = {
    "tl.disable_warp_specialized": True,  # roles are the loop's business
    "tl.disable_tma_lower": True,  # no descriptors, no mbarriers
    "tl.disable_safe_memory_legalize": True,  # guards are written where they are needed
    "tl.enable_fp32x2_reduction": False,  # pairs of f32 need TileLang's library
    "tirx.disable_vectorize": True,  # operands are aligned to an element
}

C_TYPES = {
    "float": "float",
    "int": "int32_t",
    "uint": "uint32_t",
    "ushort": "uint16_t",
    "uchar": "uint8_t",
    "double": "double",
}
"""Element types of parameters as TileLang's CUDA sources name them, and as ours do."""

REDUCTIONS = {"tl::SumOp": "tc::Sum", "tl::MaxOp": "tc::Max", "tl::MinOp": "tc::Min"}
"""TileLang's operations of reductions, and those of `reduce.cuh`, which takes the place of its library."""

REDUCE_BYTES = 4 * BLOCK.warps
"""Shared memory of a reduction over all threads: an element of 4 bytes a warp."""

CALLS = {
    *("if", "for", "while", "return", "atomicAdd", "max", "min", "body_barrier", "__int_as_float"),
    *("expf", "tanhf", "sqrtf", "rsqrtf"),
}
"""What else may stand before a parenthesis."""

BANNED = (
    *(
        "__shared__",
        "__syncthreads",
        "blockIdx",
        "blockDim",
        "gridDim",
        "cooperative_groups",
        "warpgroup",
        "setmaxnreg",
    ),
    *(
        "CUtensorMap",
        "elect",
        "mbarrier",
        "cp_async",
        "asm",
        "__ldg",
        "tl::",
        "__restrict__",
        "const ",
        "goto",
        "static",
        "printf",
        "//",
    ),
)
"""What no rewritten body may hold: memory or indices of its own, other roles, loads that may be stale, escapes."""

KERNEL = re.compile(
    r'extern "C" __global__ void __launch_bounds__\((\d+), (\d+)\) (\w+)\(([^)]*)\) \{\n(.*?)\n\}\n', re.DOTALL
)
REDUCE = re.compile(r"tl::AllReduce<(tl::\w+), (\d+), 1, 0(?:, tl::NamedBarrier<(\d+)>)?>::run\(")
WORKSPACE = re.compile(r"\(&\((?:\(\(\w+\*\)workspace\w*\)|workspace\w*)\[0\]\)\)\)")
WORKSPACE_DECLARED = re.compile(r"^ *\w+\* workspace\w* = .*;\n", re.MULTILINE)
SHARED = re.compile(r"extern __shared__ __align__\((\d+)\) (\w+) (\w+)\[\];")


class LoweringError(AssertionError):
    """TileLang made something that the rewriter doesn't know: a fault of the body, or a new TileLang."""


@dataclass(frozen=True)
class Lowered:
    """A lowered body.

    `source` is the function's text with `@NAME@` for its name; the CUDA form needs `call.cuh` and `reduce.cuh`.
    `shared_bytes` is the shared memory, 1024-byte aligned, that it is given as its last parameter; parameter i is the
    body's argument `order[i]`.
    """

    source: str
    shared_bytes: int
    order: tuple[int, ...]

    def function(self, name: str) -> str:
        """The text of the function, called `name`."""
        return self.source.replace("@NAME@", name)

    def call(self, name: str, args: Sequence[str]) -> str:
        """The statement that calls it, of a body's `args`."""
        return f"{name}({', '.join([*(args[i] for i in self.order), 'c.scratch'])});"


def to_cuda(body: TileBody, architecture: str) -> Lowered:
    """The body as a device function for an architecture, e.g. sm_90a. Raises LoweringError on anything unknown."""
    return lowered(body, architecture, lambda: _lower_cuda(body, architecture))


def lowered(body: TileBody, target: str, make: Callable[[], Lowered]) -> Lowered:
    """The body as `make` lowers it for a target, or as it did before: only bodies and this file may change that."""
    key = key_of([*_sources(), repr((BLOCK, shared_constants())), _version(), target, _identity(body)])
    text = cached("tilelang", key, lambda: _dumps(make()))
    fields = json.loads(text)
    return Lowered(fields["source"], fields["shared_bytes"], tuple(fields["order"]))


def _dumps(made: Lowered) -> bytes:
    return json.dumps(vars(made)).encode()


def _identity(body: TileBody) -> str:
    return f"{body.build.__module__}.{body.build.__qualname__} {body.values!r}"


@functools.cache
def _version() -> str:
    return importlib.metadata.version("tilelang")


@functools.cache
def _sources() -> tuple[str, ...]:
    """The text of everything that bodies are written in: they share parts with each other."""
    ops = Path(__file__).parents[2] / "ops"
    files = [*sorted((ops / "kit").glob("*.py")), Path(__file__), ops / "context.py"]
    bodies = {op.name: op.folder / "gpu.py" for op in REGISTRY.values() if op.gpu}
    return tuple(path.read_text() for path in [*files, *(bodies[name] for name in sorted(bodies))])


# --- TileLang ---------------------------------------------------------------------------------------------------------


def argument_names(function: Any) -> list[str]:
    """Names of the parameters of a `prim_func`, in its order."""
    return [str((function.buffer_map.get(p, p)).name) for p in function.params]


def lower(function: Any, described: Any) -> Any:
    """What TileLang makes of a `prim_func` for a target, in TVM's words."""
    import tilelang  # first: it brings tvm along
    from tvm.target import Target

    target = Target(described)
    with tilelang.transform.PassContext(opt_level=3, config=CONFIG), target:
        return tilelang.lower(function, target=target)


def _lower_cuda(body: TileBody, architecture: str) -> Lowered:
    function = body.build(Flavor(), *body.values)
    artifact = lower(function, {"kind": "cuda", "arch": architecture})
    ((_, made),) = artifact.device_mod.functions.items()
    shared = int(made.attrs.get("dyn_shared_memory_buf", 0) or 0)
    return rewrite(artifact.kernel_source, argument_names(function), shared)


# --- the rewriter -----------------------------------------------------------------------------------------------------


def rewrite(source: str, names: Sequence[str], shared_bytes: int) -> Lowered:
    """A device function of the kernel that TileLang made of a body whose parameters have these names, in order.

    Pointers lose `const` and `__restrict__`: what a body reads, another SM may have written in the same launch, and a
    load through the read-only cache would miss it. `__syncthreads` becomes a barrier of the consumers, dynamic shared
    memory a parameter, TileLang's reductions ours, with room of their own. Raises LoweringError on anything unknown.
    """
    kernels = KERNEL.findall(source)
    _require(len(kernels) == 1, "is not one kernel with a launch bound", source)
    threads, blocks, _, parameter_text, text = kernels[0]
    _require((int(threads), int(blocks)) == (THREADS, 1), f"has {threads} threads, want {THREADS}", source)
    parameters = parameters_of(parameter_text.replace("__restrict__", "").replace("const ", ""))

    declared = SHARED.findall(text)
    _require(len(declared) == (1 if shared_bytes else 0), f"states {shared_bytes} bytes of shared memory", text)
    for alignment, kind, name in declared:
        _require(int(alignment) <= SCRATCH_ALIGN, f"aligns shared memory to {alignment} bytes", text)
        text = SHARED.sub(f"{kind}* {name} = reinterpret_cast<{kind}*>(scratch);", text)
    text = re.sub(r"/\*[^*]*\*/", "", text)  # TileLang writes each number twice, for people
    text = text.replace("__syncthreads();", "tc::body_barrier();")
    text = text.replace("AtomicAdd(", "atomicAdd(").replace("CUDART_INF_F", "__int_as_float(0x7F800000)")
    text = REDUCE.sub(_reduction, text)
    text, shared_bytes = _one_workspace(text, [name for _, _, name in declared], shared_bytes)
    text = re.sub(r"\b(uint|ushort|uchar)\b", lambda m: C_TYPES[m[0]], text)

    for word in BANNED:
        _require(re.search(rf"(?<![a-z]){re.escape(word)}", text) is None, f"holds {word.strip()}", text)
    for name in re.findall(r"\b([A-Za-z_]\w*)\s*\(", text):
        _require(name in CALLS, f"calls {name}", text)

    declaration = ", ".join([*(f"{kind} {name}" for kind, name in parameters), "char* scratch"])
    text = f"  const int thread = tc::fresh_thread();\n{text}".replace("((int)threadIdx.x)", "thread")
    _require("threadIdx" not in text, "takes a thread's number otherwise", text)
    function = f"static __device__ __forceinline__ void @NAME@({declaration}) {{\n{text}\n}}\n"
    return Lowered(function, shared_bytes, order_of(parameters, names))


def _one_workspace(text: str, declared: Sequence[str], shared_bytes: int) -> tuple[str, int]:
    """The text with one memory for all reductions, behind all other, and the bytes of shared memory that it then takes.

    TileLang gives each reduction a buffer. All of them have the same name, and which comes first in memory depends on
    the addresses of its compiler's objects: the text would differ from process to process. Only reductions use this
    memory, and `tc::reduce` waits for those before it.
    """
    if WORKSPACE.search(text):
        text = WORKSPACE_DECLARED.sub("", text)
        others = [name for name in declared if len(re.findall(rf"\b{name}\b", text)) > 1]
        if not others:
            text = re.sub(rf"^ *\w+\* ({'|'.join(declared)}) = .*;\n", "", text, flags=re.MULTILINE)
        begin = -(-shared_bytes // 16) * 16 if others else 0
        text, shared_bytes = WORKSPACE.sub(f"scratch + {begin})", text), begin + REDUCE_BYTES
    _require("workspace" not in text, "takes memory for a reduction otherwise", text)
    return text, shared_bytes


def _reduction(found: re.Match[str]) -> str:
    operation, width, threads = found.groups()
    _require(operation in REDUCTIONS, f"reduces by {operation}", found[0])
    _require(int(width) <= BLOCK.lanes or width == threads == str(THREADS), f"reduces over {width} threads", found[0])
    return f"tc::reduce<{REDUCTIONS[operation]}, {width}>("


def _require(condition: bool, what: str, text: str) -> None:
    if not condition:
        raise LoweringError(f"a lowered body {what}:\n{text}")


def parameters_of(text: str) -> list[tuple[str, str]]:
    """(type, name) of each parameter in a C declaration. Raises LoweringError for a type that C_TYPES lacks."""
    found = []
    for parameter in filter(None, map(str.strip, text.split(","))):
        kind, name = parameter.rsplit(maxsplit=1)
        element = kind.rstrip("*").strip()
        _require(element in C_TYPES or element in C_TYPES.values(), f"has a parameter {parameter}", text)
        found.append((C_TYPES.get(element, element) + ("*" if kind.endswith("*") else ""), name))
    return found


def order_of(parameters: list[tuple[str, str]], names: Sequence[str]) -> tuple[int, ...]:
    """Which argument each parameter is. TileLang sorts parameters by name and drops those that aren't used."""
    for _, name in parameters:
        _require(name in names, f"has a parameter {name} that the body lacks", ", ".join(names))
    return tuple(names.index(name) for _, name in parameters)
