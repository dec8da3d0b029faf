"""What an engine runs on: memory that holds its arenas and weights, and launches of its kernel over it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.folder.tables import Tables
from tilecompile.runtime.kernel import Resident

Bytes = npt.NDArray[np.uint8]


class Backend(Protocol):
    """Memory and launches.

    `threads`: host threads that run the kernel, or 0 on GPUs; `exclusive`: only one kernel at a time can be resident;
    `drawn`: the seed of weights that were drawn instead of read, or None.
    """

    threads: int
    exclusive: bool
    drawn: int | None

    def launch(self, tables: Tables, stops: Iterable[int] | None = None, extra: Sequence[int] = ()) -> Resident:
        """Launches the kernel on these tables; `stops` are the ids that end a request, by default the engine's.

        With `extra`, bytes for each device, the launch has activations of its own, followed by that much memory: it
        holds buffers of the activation arena with offsets from `extra_begin` on.
        """

    def write_extra(self, device: int, data: Bytes) -> None:
        """Fills the extra memory of the last launch, while no request runs."""

    def clear(self) -> None:
        """Resets the arenas to their contents at the first launch; no kernel runs meanwhile."""

    def read(self, device: int, arena: str, begin: int, end: int) -> Bytes:
        """A copy of a part of an arena, while no request runs."""

    def write(self, device: int, arena: str, begin: int, data: Bytes) -> None:
        """Writes to an arena, while no request runs."""

    def close(self) -> None:
        """Frees the memory; no kernel runs any more."""
