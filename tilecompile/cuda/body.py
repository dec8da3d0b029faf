"""How an op states its GPU body: written in TileLang, or by hand over the weight ring.

A body is run by the 256 threads of the eight consumer warps of a block; all of them enter it and all of them leave it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

THREADS = 256
"""Threads that run a body."""

PrimFunc = Any
"""A TileLang `prim_func`. TileLang has no types."""


@dataclass(frozen=True)
class Flavor:
    """What a TileLang body is built for: CUDA, or with `cpu` C, which a test runs on the CPU in one thread.

    TileLang's `c` target knows no threads: fragments and shared memory become arrays, and parallel loops plain ones.
    """

    cpu: bool = False

    def fragment(self, shape: tuple[int, ...], dtype: str) -> Any:
        """An array that lies in the threads' registers, divided over them."""
        import tilelang.language as T

        return T.alloc_local(shape, dtype) if self.cpu else T.alloc_fragment(shape, dtype)

    def shared(self, shape: tuple[int, ...], dtype: str) -> Any:
        """An array in shared memory."""
        import tilelang.language as T

        return T.alloc_local(shape, dtype) if self.cpu else T.alloc_shared(shape, dtype)

    def parallel(self, *extents: Any) -> Any:
        """A loop whose iterations are independent, divided over the threads."""
        import tilelang.language as T

        return T.grid(*extents) if self.cpu else T.Parallel(*extents)


@dataclass(frozen=True)
class TileBody:
    """A body in TileLang: `build(flavor, *values)` makes the `prim_func`, which has one block of THREADS threads.

    `values` are what the body depends on besides its source (numbers, strings, tuples of them: their `repr` becomes a
    part of the key of cached results). `args` are the C++ expressions over `const Call& c` of its parameters, in order.
    """

    build: Callable[..., PrimFunc]
    values: tuple[Any, ...]
    args: tuple[str, ...]


@dataclass(frozen=True)
class StreamBody:
    """A body by hand: the C++ statement over `const Call& c`, and the ops whose `gpu.cuh` it needs, in order."""

    statement: str
    headers: tuple[str, ...]


Body = TileBody | StreamBody
