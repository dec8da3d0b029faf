"""The roof: how fast this machine's threads read a working set of a step's size, by the best of several read kernels.

The kernels are part of the engine's own kernel (`targets/cpu/roof.h`). Which one is best depends on the machine and
on where the working set is (memory or a cache), so all are tried and the best few are measured in every round.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from statistics import median

import numpy as np

from tilecompile.errors import InputError
from tilecompile.runtime.cpu.memory import HUGE_PAGE, Bytes, address, allocate
from tilecompile.runtime.engine import Engine
from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.machine import free_memory
from tilecompile.runtime.progress import Count
from tilecompile.schedules.machine import load_machine

GRAIN = 4096
"""A thread's part of the working set is a multiple of this many bytes."""

LEAST_BYTES = 64 << 10
SECONDS = 0.01
"""Time of one measurement: a small working set is read over and over."""

SWEEPS = 3
FINALISTS = 4

HINTS = {-1: "", 3: "T0", 2: "T1", 0: "NTA"}
"""Locality of the prefetch hints, and their x86 names."""


@dataclass(frozen=True)
class ReadKernel:
    """One way to read: streams side by side, prefetches `ahead` bytes with a locality (-1: none), the kind of pages."""

    streams: int
    locality: int
    ahead: int
    huge_pages: bool

    @property
    def name(self) -> str:
        """What it does, in words."""
        words = [f"{self.streams} stream{'s' * (self.streams > 1)}"]
        words.append(f"prefetch {HINTS[self.locality]} {self.ahead >> 10} KB ahead" if self.ahead else "no prefetch")
        words.append("huge pages" if self.huge_pages else "normal pages")
        return ", ".join(words)


KERNELS = tuple(
    ReadKernel(streams, locality, ahead << 10, huge)
    for huge in (True, False)
    for streams, locality, ahead in (
        *((streams, -1, 0) for streams in (1, 2, 4)),
        *((1, locality, ahead) for locality in (3, 2, 0) for ahead in (1, 2, 4, 8, 16)),
        *((streams, locality, ahead) for streams in (2, 4) for locality in (3, 0) for ahead in (1, 2, 4)),
    )
)


class Roof:
    """The working set, on huge and on normal pages, and the read kernels that are measured on it.

    `size` is that of the set: `requested` bytes in whole grains, or less where memory is short; beyond the caches the
    bandwidth doesn't depend on it.
    """

    def __init__(self, engine: Engine, requested: float) -> None:
        if not hasattr(engine.cpu.library, "tc_read"):
            raise EngineError(f"{engine.manifest.folder}: the kernel has no read kernels; compile the model again")
        self._read = engine.cpu.library.tc_read
        self._read.restype = ctypes.c_double
        integers = (ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_int32, ctypes.c_uint64, ctypes.c_uint32)
        self._read.argtypes = [ctypes.c_void_p, *integers, ctypes.c_void_p]
        self.threads = engine.threads
        grain = self.threads * GRAIN
        free = free_memory()
        most = max(LEAST_BYTES, free // 4) if free else requested
        self.size = max(1, round(min(max(requested, LEAST_BYTES), most) / grain)) * grain
        whole = -(-self.size // HUGE_PAGE) * HUGE_PAGE
        self.areas = {huge: allocate(whole, huge)[: self.size] for huge in (True, False)}
        for area in self.areas.values():
            _fill(area)
        self.kernels = KERNELS
        self.passes = 1
        fastest = max(self.gbs(k) for k in KERNELS[:3] for _ in range(2))
        self.passes = max(1, round(SECONDS * fastest * 1e9 / self.size))

    def read(self, kernel: ReadKernel) -> tuple[float, int]:
        """Reads the working set `passes` times: the seconds, and the sum of its 32-bit words over all passes."""
        total = ctypes.c_uint32()
        how = (self.threads, kernel.streams, kernel.locality, kernel.ahead, self.passes)
        seconds = self._read(address(self.areas[kernel.huge_pages]), self.size, *how, ctypes.byref(total))
        if seconds < 0:
            raise EngineError(f"the read kernels need {self.threads} threads, and the system gives no more")
        return seconds, total.value

    def gbs(self, kernel: ReadKernel) -> float:
        """Bandwidth of one measurement in 10⁹ bytes a second."""
        return self.size * self.passes / self.read(kernel)[0] / 1e9

    def choose(self, progress: Count) -> dict[ReadKernel, float]:
        """Tries all kernels round-robin and keeps the best few; returns each one's bandwidth in 10⁹ bytes a second."""
        found: dict[ReadKernel, list[float]] = {k: [] for k in KERNELS}
        for sweep in range(SWEEPS):
            for i, kernel in enumerate(KERNELS):
                progress(sweep * len(KERNELS) + i, SWEEPS * len(KERNELS))
                found[kernel].append(self.gbs(kernel))
        medians = {k: median(values) for k, values in found.items()}
        ordered = dict(sorted(medians.items(), key=lambda item: -item[1]))
        self.kernels = tuple(ordered)[:FINALISTS]
        used = {k.huge_pages for k in self.kernels}
        self.areas = {huge: area for huge, area in self.areas.items() if huge in used}
        return ordered

    def measure(self) -> dict[ReadKernel, float]:
        """Bandwidth of each chosen kernel now, in 10⁹ bytes a second."""
        return {kernel: self.gbs(kernel) for kernel in self.kernels}


@dataclass(frozen=True)
class StatedRoof:
    """A roof that a machine's description states: `gbs` of all GPUs together, and `name`, where that is from."""

    name: str
    gbs: float


def stated_roof(manifest: Manifest, machine: str | None, gpus: int) -> StatedRoof:
    """What a machine's file says of `gpus` GPUs like the engine's: measured if it is calibrated, else the data sheet's.

    InputError if the file doesn't state it, or is of another target.
    """
    found = load_machine(machine or str(manifest.data["machine"]))
    target = manifest.data["target"]["name"]
    if found.target != target:
        raise InputError(f"--machine {found.name} is for {found.target}, {manifest.folder} for {target}")
    if found.simulator is not None and found.simulator.calibrated:
        name = f"{found.name}, calibrated: {found.simulator.calibrated}"
        return StatedRoof(name, found.simulator.read[-1][2] * gpus)
    if found.bandwidth_gbs is None:
        raise InputError(f"machine {found.name} states no bandwidth_gbs: give --machine FILE")
    return StatedRoof(f"{found.name}, data sheet", found.bandwidth_gbs * gpus)


def _fill(area: Bytes) -> None:
    """Fills the area with numbers that have no pattern."""
    block = np.frombuffer(np.random.default_rng(0).bytes(1 << 20), np.uint8)
    for begin in range(0, area.size, block.size):
        part = area[begin : begin + block.size]
        part[:] = block[: part.size]
