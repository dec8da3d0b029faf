"""What an engine runs on: memory that holds its arenas and weights, and launches of its kernel over it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.kernel import Kernel, Resident, open_kernel
from tilecompile.runtime.launch import Memory, clear, extra_begin, launch_kernel, load_memory
from tilecompile.runtime.manifest import KERNEL, Manifest, check_same
from tilecompile.runtime.memory import allocate
from tilecompile.runtime.tables import Tables

Bytes = npt.NDArray[np.uint8]


class Backend(Protocol):
    """Memory and launches.

    `threads`: host threads that run the kernel, or 0 on GPUs; `exclusive`: only one kernel at a time can be resident.
    """

    threads: int
    exclusive: bool

    def launch(self, tables: Tables, stops: Iterable[int] | None = None, extra: Sequence[int] = ()) -> Resident:
        """Launches the kernel on these tables; `stops` are the ids that end a request, by default the engine's.

        With `extra`, bytes for each device, the launch has activations of its own, and that much memory behind them:
        there lie buffers of the activation arena with offsets from `extra_begin` on.
        """

    def write_extra(self, device: int, data: Bytes) -> None:
        """Fills the extra memory of the last launch, while no request runs."""

    def clear(self) -> None:
        """Makes the arenas what they were at the first launch; no kernel runs meanwhile."""

    def read(self, device: int, arena: str, begin: int, end: int) -> Bytes:
        """A copy of a part of an arena, while no request runs."""

    def write(self, device: int, arena: str, begin: int, data: Bytes) -> None:
        """Writes to an arena, while no request runs."""

    def close(self) -> None:
        """Gives the memory back; no kernel runs any more."""


class CpuBackend:
    """Arenas and pools in this process's memory, and threads over them."""

    exclusive = False

    def __init__(self, manifest: Manifest, threads: int, stall_ms: int) -> None:
        self.manifest, self.threads, self.stall_ms = manifest, threads, stall_ms
        self.library = open_kernel(manifest.file(KERNEL))
        self.memory: Memory = []
        self._beside: Memory = []

    def fill(self) -> None:
        """Gets the memory, and reads the weights into it."""
        self.memory = load_memory(self.manifest)
        check_same(self.manifest)

    def launch(self, tables: Tables, stops: Iterable[int] | None = None, extra: Sequence[int] = ()) -> Kernel:
        """See `Backend`."""
        memory = self.memory
        if extra:
            arenas = zip(memory, self.manifest.arenas, extra, strict=True)
            memory = [{**areas, "activation": allocate(extra_begin(arena) + n)} for areas, arena, n in arenas]
            self._beside = memory
        return launch_kernel(self.library, self.manifest, tables, memory, self.threads, self.stall_ms, stops)

    def write_extra(self, device: int, data: Bytes) -> None:
        """See `Backend`."""
        begin = extra_begin(self.manifest.arenas[device])
        self._beside[device]["activation"][begin : begin + len(data)] = data

    def clear(self) -> None:
        """See `Backend`."""
        clear(self.memory)

    def read(self, device: int, arena: str, begin: int, end: int) -> Bytes:
        """See `Backend`."""
        return self.memory[device][arena][begin:end].copy()

    def write(self, device: int, arena: str, begin: int, data: Bytes) -> None:
        """See `Backend`."""
        self.memory[device][arena][begin : begin + len(data)] = data

    def close(self) -> None:
        """See `Backend`."""
        self.memory = self._beside = []
