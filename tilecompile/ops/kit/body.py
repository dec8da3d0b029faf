"""How an op states its GPU body: written in TileLang, or by hand over the weight ring.

A body is run by the THREADS threads of the consumer warps of a block; all of them enter it and all of them leave it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tilecompile.errors import InputError
from tilecompile.ir.node import View
from tilecompile.runtime.format import BLOCK, BODY_TOKENS

THREADS = BLOCK.body_threads
"""Threads that run a body."""

STORED = {"f32": "float32", "bf16": "uint16", "i32": "int32"}
"""How TileLang bodies see the elements of buffers. bf16 as bits: TileLang's passes that replace bf16 for its C target
miss conversions of values that have a name, and give wrong results."""

CPP = {"f32": "float", "bf16": "uint16_t", "i32": "int32_t"}
"""Types of the elements of buffers in C++."""

PrimFunc = Any
"""A TileLang `prim_func`. TileLang has no types."""


@dataclass(frozen=True)
class Flavor:
    """What a TileLang body is built for: CUDA, or with `cpu` C, which a test runs on the CPU in one thread.

    TileLang's `c` target knows no threads: fragments and shared memory become arrays, and parallel loops plain ones.

    Bodies are written over THREADS lanes: element i of a fragment of THREADS elements belongs to thread i, which also
    reads and writes every THREADS-th element of memory, so that accesses are coalesced whatever their alignment.
    """

    cpu: bool = False

    def fragment(self, shape: tuple[int, ...], dtype: str) -> Any:
        """An array in the threads' registers, divided over them."""
        import tilelang.language as T

        return T.alloc_local(shape, dtype) if self.cpu else T.alloc_fragment(shape, dtype)

    def shared(self, shape: tuple[int, ...], dtype: str) -> Any:
        """An array in shared memory."""
        import tilelang.language as T

        return T.alloc_local(shape, dtype) if self.cpu else T.alloc_shared(shape, dtype)

    def parallel(self, *extents: int) -> Any:
        """Loops whose iterations are independent, divided over the threads; one each if there are THREADS."""
        import tilelang.language as T

        return T.grid(*extents) if self.cpu else T.Parallel(*extents)

    def lanes(self) -> Any:
        """A loop over the threads' numbers: what it encloses is done by each thread, in no order."""
        return self.parallel(THREADS)

    def present(self, n: Any, tokens: int) -> Any:
        """How many of a node's tokens the step carries: the body's argument n, or 1 where there is only one."""
        return n if tokens > 1 else 1

    def widen(self, x: Any, dtype: str) -> Any:
        """An element of a buffer (see STORED) as f32."""
        import tilelang.language as T

        if dtype == "f32":
            return x
        return T.reinterpret(T.shift_left(T.cast(x, "uint32"), T.uint32(16)), "float32")

    def narrow(self, x: Any, dtype: str) -> Any:
        """An f32, rounded to the nearest element of a buffer, ties to even. x must not be NaN."""
        import tilelang.language as T

        if dtype == "f32":
            return x
        bits = T.reinterpret(x, "uint32")
        odd = T.bitwise_and(T.shift_right(bits, T.uint32(16)), T.uint32(1))
        return T.cast(T.shift_right(bits + T.uint32(0x7FFF) + odd, T.uint32(16)), "uint16")


@dataclass(frozen=True)
class TileBody:
    """A body in TileLang: `build(flavor, *values)` makes the `prim_func`, which has one block of THREADS threads.

    Its parameters are pointers (`T.Tensor` of one dimension) and numbers; `args` are the C++ expressions over
    `const Call& c` of them, in order. `values` are what the body depends on besides its source: numbers, strings and
    tuples of them, whose `repr` becomes a part of the key of cached results.
    """

    build: Callable[..., PrimFunc]
    values: tuple[Any, ...]
    args: tuple[str, ...]


@dataclass(frozen=True)
class HandBody:
    """A body written by hand: the C++ statement over `const Call& c`, and the ops whose `gpu.cuh` it needs, in order.

    It takes `scratch` bytes of shared memory, and `panel_scratch` for each panel of its largest weight tile.
    """

    statement: str
    headers: tuple[str, ...]
    scratch: int = 0
    panel_scratch: int = 0


@dataclass(frozen=True)
class StreamBody(HandBody):
    """One that takes weights from the ring and multiplies on tensor cores."""


Body = TileBody | HandBody


def extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last of a strided view, both included."""
    return sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1


def check_tokens(tokens: int, what: str) -> None:
    """InputError unless bodies can take that many tokens of a step."""
    if tokens > BODY_TOKENS:
        raise InputError(f"{what} has {tokens} tokens, the bodies for GPUs take at most {BODY_TOKENS}")


def tokens_of(view: View) -> str:
    """The argument n of a body: how many of the tokens that an operand has room for the step carries, at least 1.

    Bodies leave the rows of other tokens alone: they neither read nor write them. InputError as for `check_tokens`.
    """
    tokens = view.shape[0]
    check_tokens(tokens, view.tensor)
    return "1" if tokens == 1 else f"(c.step->tokens < {tokens} ? int32_t(c.step->tokens) : {tokens})"
