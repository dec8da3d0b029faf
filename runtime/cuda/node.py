"""The GPUs that an engine runs on, and what it has there: code, arenas, weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime import format as fmt
from tilecompile.runtime.cuda.device import Gpu, check_peers, find_gpus
from tilecompile.runtime.cuda.driver import bindings
from tilecompile.runtime.cuda.fill import cache_fills, weight_fills
from tilecompile.runtime.cuda.memory import Mapping, Stage
from tilecompile.runtime.cuda.options import CudaOptions
from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.folder.files import read_bytes
from tilecompile.runtime.folder.manifest import CUBIN, Manifest, check_same
from tilecompile.runtime.folder.tables import Table, Tables
from tilecompile.runtime.progress import Count

TABLES_SLACK = 256 << 20
"""Bytes that the check of a GPU's memory allows for tables, beside arenas and weights."""


class Part:
    """One device of the engine on its GPU: heap (counters, board, activation and io arenas), caches, weights."""

    def __init__(self, gpu: Gpu, device: int, blocks: int) -> None:
        self.gpu, self.device, self.blocks = gpu, device, blocks
        self.heap: Mapping | None = None
        self.at: dict[str, int] = {}
        self.local: list[int] = []
        self.stage: Stage | None = None
        self.stream: Any = None
        self.function: Any = None
        self.fill: Any = None

    def get(self, size: int, what: str) -> int:
        """Memory that only this device uses, until the engine is closed."""
        self.local.append(self.gpu.allocate(size, what))
        return self.local[-1]

    def copy(self) -> Stage:
        """The stage that copies to and from the device's memory."""
        if self.stage is None:
            raise EngineError("the engine is closed")
        return self.stage


class Node:
    """The GPUs that an engine runs on, with its code, arenas and weights; `parts` are its devices.

    progress: called with the bytes of weights that were read, and their total. Raises EngineError as `find_gpus` and
    `Gpu.open` do, and where a GPU has too few SMs or too little memory.
    """

    def __init__(self, manifest: Manifest, tables: Tables, options: CudaOptions, progress: Count | None = None) -> None:
        self.manifest, self.options, self.progress = manifest, options, progress
        devices = range(manifest.devices) if options.share is None else [options.share]
        if devices[-1] not in range(manifest.devices):
            raise EngineError(f"{manifest.path}: share is device {devices[-1]}, the engine has {manifest.devices}")
        count = 1 if options.on_one_gpu or options.share is not None else manifest.devices
        numbers = options.gpus or tuple(range(count))
        self.gpus: list[Gpu] = find_gpus(manifest, numbers, count)
        workers = np.unique(tables["streams"][["device", "worker"]])  # the same in every program
        of_device = {d: workers["worker"][workers["device"] == d] for d in range(manifest.devices)}
        self.first_worker = {d: int(mine.min()) for d, mine in of_device.items()}
        self.parts = [Part(self.gpus[i % count], d, len(of_device[d])) for i, d in enumerate(devices)]
        self._lock = Lock()
        self._libraries: list[tuple[Gpu, Any]] = []
        try:
            self._open(tables)
        except BaseException:
            self.close()
            raise

    def _open(self, tables: Tables) -> None:
        self._check_blocks()
        if len(self.gpus) > 1:
            check_peers(self.gpus)
        for gpu in self.gpus:
            gpu.open()
        self._check_memory()
        self._load_code()
        events = 4 * len(tables["events"])
        arenas = {int(a["device"]): a for a in self.manifest.arenas}
        for part in self.parts:
            sizes = {"counters": events, "board": fmt.BOARD_BYTES}
            sizes |= {name: int(arenas[part.device][name]) for name in ("activation", "io")}
            begin = {}
            total = 0
            for name, size in sizes.items():
                begin[name], total = total, total + -(-size // 256) * 256
            part.stage = Stage(part.gpu)
            part.stream = part.gpu.call("cuStreamCreate", bindings().CUstream_flags.CU_STREAM_NON_BLOCKING)
            part.heap = Mapping(part.gpu, total, self.gpus, f"what device {part.device} exchanges")
            part.at = {name: part.heap.address + offset for name, offset in begin.items()}
            part.at["cache"] = part.get(int(arenas[part.device]["cache"]), "caches")
            part.at["weight"] = part.get(int(self.manifest.pools[part.device]["bytes"]), "weights")
        self.clear(first=True)
        self._fill_weights(tables)
        check_same(self.manifest)

    def _check_blocks(self) -> None:
        """EngineError unless every block can have an SM for itself."""
        for gpu in self.gpus:
            needed = sum(p.blocks for p in self.parts if p.gpu is gpu)
            found = gpu.attribute("MULTIPROCESSOR_COUNT")
            if needed > found:
                raise EngineError(
                    f"{self.manifest.path}: {needed} workers want an SM each, {gpu.where} ({gpu.name}) has {found}; "
                    "compile with fewer --workers"
                )

    def _check_memory(self) -> None:
        arenas = {int(a["device"]): a for a in self.manifest.arenas}
        for gpu in self.gpus:
            mine = [p.device for p in self.parts if p.gpu is gpu]
            needed = sum(int(self.manifest.pools[d]["bytes"]) + sum(map(int, _sizes(arenas[d]))) for d in mine)
            needed += TABLES_SLACK
            free, total = (int(n) for n in gpu.call("cuMemGetInfo"))
            if needed > free:
                others = "; other processes use the rest" if total - free > total // 10 else ""
                raise EngineError(
                    f"{self.manifest.folder}: the engine needs {needed} bytes of memory on {gpu.where} ({gpu.name}), "
                    f"{free} of {total} are free{others}"
                )

    def _load_code(self) -> None:
        driver = bindings()
        code = read_bytes(self.options.cubin or self.manifest.file(CUBIN))
        shared = self.shared
        for gpu in self.gpus:
            library = gpu.call("cuLibraryLoadData", code, [], [], 0, [], [], 0)
            self._libraries.append((gpu, library))
            functions = []
            for name in (fmt.MEGAKERNEL, fmt.FILL):
                kernel = gpu.call("cuLibraryGetKernel", library, name.encode())
                functions.append(gpu.call("cuKernelGetFunction", kernel))
            most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            gpu.call("cuFuncSetAttribute", functions[0], most, shared)
            fit = gpu.call("cuOccupancyMaxActiveBlocksPerMultiprocessor", functions[0], fmt.BLOCK.threads, shared)
            if int(fit) < 1:
                raise EngineError(
                    f"{self.manifest.path}: no block of the kernel fits on an SM of {gpu.where} ({gpu.name})"
                )
            for part in self.parts:
                if part.gpu is gpu:
                    part.function, part.fill = functions

    @property
    def shared(self) -> int:
        """Dynamic shared memory of a block, bytes."""
        return int(self.manifest.data["resources"]["kernel"]["dynamic_shared"])

    def clear(self, first: bool = False) -> None:
        """Zeroes all but the weights, while no kernel runs."""
        for part in self.parts:
            stage = part.copy()
            if part.heap is not None:
                stage.zero(part.heap.address, part.heap.size)
            size = int(self.manifest.arenas[part.device]["cache"])
            if first and self.options.random_seed is not None:
                continue  # drawn, as the weights are
            stage.zero(part.at["cache"], size)

    def _fill_weights(self, tables: Tables) -> None:
        """Reads the weights of all devices, or draws them, and caches with them."""
        if self.options.random_seed is not None:
            for part in self.parts:
                self._draw(part, weight_fills(tables, part.device, part.at["weight"]))
                self._draw(part, cache_fills(tables, part.device, part.at["cache"]))
            return
        total = sum(int(self.manifest.pools[p.device]["bytes"]) for p in self.parts)
        done = 0

        def count(size: int) -> None:
            nonlocal done
            with self._lock:
                done += size
                if self.progress:
                    self.progress(done, total)

        def upload(part: Part) -> None:
            pool = self.manifest.pools[part.device]
            part.copy().fill_file(part.at["weight"], self.manifest.file(pool["file"]), int(pool["bytes"]), count)

        with ThreadPoolExecutor(len(self.gpus)) as pool:
            for _ in pool.map(upload, self.parts):
                pass

    def _draw(self, part: Part, fills: Table) -> None:
        """Fills memory with random numbers, by the engine's kernel for it."""
        fills = fills[fills["bytes"] > 0]
        if not len(fills):
            return
        target = part.gpu.allocate(fills.nbytes, "a list of what is drawn")
        try:
            part.copy().write(target, fills)
            seed = np.array([self.options.random_seed or 0], np.uint32)
            values: list[npt.NDArray[Any]] = [np.array([target], np.uint64), seed]
            part.gpu.launch(part.fill, len(fills), fmt.FILL_THREADS, 0, values, part.stream)
            part.gpu.call("cuStreamSynchronize", part.stream)
        finally:
            part.gpu.attempt("cuMemFree", target)

    def close(self) -> None:
        """Frees everything, in whatever state a fault has left it; no kernel runs any more."""
        for part in self.parts:
            if part.stage is not None:
                part.stage.free()
            if part.stream is not None:
                part.gpu.attempt("cuStreamDestroy", part.stream)
            for address in part.local:
                part.gpu.attempt("cuMemFree", address)
            part.stage = part.stream = None
            part.local = []
        for gpu, library in self._libraries:
            gpu.attempt("cuLibraryUnload", library)
        self._libraries = []
        for gpu in self.gpus:
            gpu.close()
        for part in self.parts:  # last: what a fault has left of a context refuses every call
            if part.heap is not None:
                part.heap.free()
            part.heap = None


def _sizes(arenas: dict[str, int]) -> list[int]:
    return [int(arenas[name]) for name in ("activation", "cache", "io")]
