"""The launches of an engine's kernel: the one that is resident, those before it, and those beside it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tilecompile.runtime.backend import Backend
from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.folder.tables import Tables
from tilecompile.runtime.kernel import Resident
from tilecompile.runtime.uninterrupted import uninterrupted


class Launches:
    """Launches a kernel and keeps it resident until `close`, or until the last reference to this object is gone.

    `kernel` is the resident one; the backend's memory is freed after it ends.
    """

    kernel: Resident

    def __init__(self, tables: Tables, backend: Backend) -> None:
        self._tables, self._backend = tables, backend
        self._launches = self._steps = 0  # of kernels that are closed
        self._closed = self._away = False
        self._launch()

    def _launch(self) -> None:
        """Launches the kernel. EngineError if another thread has closed the engine; then or meanwhile, it is ended."""
        tables = self._tables
        if self._closed:
            raise EngineError("the engine is closed")
        self.kernel = self._backend.launch(tables)
        self._finalizer = weakref.finalize(self, _end, self.kernel, self._backend)
        if self._closed:
            self._finalizer()

    def _close_kernel(self) -> None:
        self.kernel.close()
        self._launches += self.kernel.field("launches")
        self._steps += self.kernel.field("steps")

    @property
    def closed(self) -> bool:
        """Whether the engine is closed; not while its kernel is only away, to be launched again."""
        return self._closed or (self.kernel.closed and not self._away)

    @property
    def launches(self) -> int:
        """The launches of the engine's own kernel so far."""
        return self._launches + self.kernel.field("launches")

    @property
    def steps(self) -> int:
        """Steps that the engine's own kernel has run, up to the last one that the host has seen."""
        return self._steps + self.kernel.field("steps")

    def relaunch(self) -> None:
        """Launches again after a stall: fresh threads and counters, and memory as at the first launch."""
        self._away = True
        try:
            self._finalizer.detach()
            self._close_kernel()
            self._backend.clear()
            self._launch()
        except EngineError as error:
            self._backend.close()
            raise EngineError(f"{error}; the engine is closed and must be loaded again") from error
        finally:
            self._away = False

    @contextmanager
    def beside(self, tables: Tables, extra: Sequence[int]) -> Iterator[Resident]:
        """Launches another kernel over the same memory and closes it at the end; see `Engine.beside`."""
        self._away = self._backend.exclusive
        if self._backend.exclusive:
            self._close_kernel()
        try:
            kernel = self._backend.launch(tables, (), extra)
            try:
                yield kernel
            finally:
                kernel.close()
        finally:
            try:
                if self._backend.exclusive:
                    self._finalizer.detach()
                    self._launch()
            finally:
                self._away = False

    def close(self) -> None:
        """Ends the kernel, frees its memory and drops the tables; further calls do nothing."""
        self._closed = True
        self._finalizer()
        self._tables = {}


def _end(kernel: Resident, backend: Backend) -> None:
    """Ends a kernel and frees its memory."""

    def work() -> None:
        try:
            kernel.close()
        finally:
            backend.close()

    uninterrupted(work)
