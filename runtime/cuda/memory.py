"""Memory of an engine on GPUs: a symmetric heap that peers reach, and copies from files and back.

What other devices write to is in the symmetric heap: one mapping a device, made by the driver's virtual memory
management and opened to all devices, so that an address means the same on each.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.cuda.device import Gpu
from tilecompile.runtime.cuda.driver import OUT_OF_MEMORY, SUCCESS, attempt, bindings, error_of
from tilecompile.runtime.errors import EngineError

Bytes = npt.NDArray[np.uint8]

STAGE_BYTES = 32 << 20
"""Pinned memory that a file passes through, double-buffered: one half is filled while the other is copied."""


class Mapping:
    """Memory of one GPU that all GPUs of `readers` reach at `address`; not zeroed."""

    def __init__(self, gpu: Gpu, size: int, readers: list[Gpu], what: str) -> None:
        driver = bindings()
        self.gpu = gpu
        self.address = self.size = 0
        self._handle: Any = None
        self._mapped = False
        place = driver.CUmemLocation()
        place.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        place.id = gpu.number
        made = driver.CUmemAllocationProp()
        made.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        made.location = place
        least = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        unit = int(gpu.call("cuMemGetAllocationGranularity", made, least))
        size = -(-max(size, 1) // unit) * unit
        code, handle = attempt("cuMemCreate", size, made, 0)
        if code == OUT_OF_MEMORY:
            raise EngineError(f"{gpu.where} ({gpu.name}): no {size} bytes for {what}, {gpu.free_memory()} are free")
        if code != SUCCESS:
            raise error_of(gpu.where, "cuMemCreate", code)
        self._handle = handle
        try:
            self.address = int(gpu.call("cuMemAddressReserve", size, 0, 0, 0))
            self.size = size
            gpu.call("cuMemMap", self.address, size, 0, handle, 0)
            self._mapped = True
            access = [driver.CUmemAccessDesc() for _ in readers]
            for one, reader in zip(access, readers, strict=True):
                where = driver.CUmemLocation()
                where.type, where.id = place.type, reader.number
                one.location = where
                one.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
            gpu.call("cuMemSetAccess", self.address, size, access, len(access))
        except BaseException:
            self.free()
            raise

    def free(self) -> None:
        """Frees the memory. Mappings outlive contexts, so this must be called, and again if a fault made it fail."""
        if self._mapped and attempt("cuMemUnmap", self.address, self.size)[0] == SUCCESS:
            self._mapped = False
        if self.address and not self._mapped and attempt("cuMemAddressFree", self.address, self.size)[0] == SUCCESS:
            self.address = 0
        if self._handle is not None and attempt("cuMemRelease", self._handle)[0] == SUCCESS:
            self._handle = None


class Pinned:
    """Zeroed host memory that the GPUs reach: `host` are its bytes, `address` is where devices see it."""

    def __init__(self, gpu: Gpu, size: int, mapped: bool = True) -> None:
        driver = bindings()
        flags = driver.CU_MEMHOSTALLOC_PORTABLE | (driver.CU_MEMHOSTALLOC_DEVICEMAP if mapped else 0)
        self.gpu = gpu
        self.size = size = max(size, 64)
        self._pointer = int(gpu.call("cuMemHostAlloc", size, flags))
        try:
            self.address = int(gpu.call("cuMemHostGetDevicePointer", self._pointer, 0)) if mapped else 0
        except BaseException:
            self.free()
            raise
        self.host: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self._pointer))
        self.host[:] = 0

    def free(self) -> None:
        """Frees the memory; `host` must not be used any more."""
        if self._pointer:
            self.gpu.attempt("cuMemFreeHost", self._pointer)
            self._pointer = 0


class Stage:
    """Copies between host and a GPU through pinned memory, on a stream of its own: also while a kernel is resident."""

    def __init__(self, gpu: Gpu) -> None:
        driver = bindings()
        self.gpu = gpu
        self._stream = gpu.call("cuStreamCreate", driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self._lock = threading.Lock()  # a waiting thread may make the blocks leave while another one reads
        self._events: list[Any] = []
        self._halves: list[Pinned] = []
        try:
            for _ in range(2):
                self._events.append(gpu.call("cuEventCreate", driver.CUevent_flags.CU_EVENT_DISABLE_TIMING.value))
                self._halves.append(Pinned(gpu, STAGE_BYTES // 2, mapped=False))
        except BaseException:
            self.free()
            raise

    def _pieces(self, size: int) -> list[tuple[int, int]]:
        half = STAGE_BYTES // 2
        return [(begin, min(begin + half, size)) for begin in range(0, size, half)]

    def fill(self, target: int, size: int, read: Callable[[int, Bytes], None]) -> None:
        """Writes `size` bytes to a device address; `read(offset, into)` gives them piece by piece."""
        with self._lock:
            for i, (begin, end) in enumerate(self._pieces(size)):
                half, event = self._halves[i % 2], self._events[i % 2]
                if i >= 2:
                    self.gpu.call("cuEventSynchronize", event)
                read(begin, half.host[: end - begin])
                self.gpu.call("cuMemcpyHtoDAsync", target + begin, half.host.ctypes.data, end - begin, self._stream)
                self.gpu.call("cuEventRecord", event, self._stream)
            self.gpu.call("cuStreamSynchronize", self._stream)

    def write(self, target: int, data: npt.NDArray[Any]) -> None:
        """Copies an array to a device address."""
        flat = np.ascontiguousarray(data).view(np.uint8).reshape(-1) if data.size else np.zeros(0, np.uint8)

        def read(offset: int, into: Bytes) -> None:
            into[:] = flat[offset : offset + len(into)]

        self.fill(target, len(flat), read)

    def read(self, source: int, size: int) -> Bytes:
        """A copy of device memory."""
        out = np.empty(size, np.uint8)
        half = self._halves[0].host
        with self._lock:
            for begin, end in self._pieces(size):
                self.gpu.call("cuMemcpyDtoHAsync", half.ctypes.data, source + begin, end - begin, self._stream)
                self.gpu.call("cuStreamSynchronize", self._stream)
                out[begin:end] = half[: end - begin]
        return out

    def zero(self, target: int, size: int) -> None:
        """Clears device memory."""
        if size:
            self.gpu.call("cuMemsetD8Async", target, 0, size, self._stream)
            self.gpu.call("cuStreamSynchronize", self._stream)

    def fill_file(self, target: int, path: Path, size: int, done: Callable[[int], None]) -> None:
        """Copies a file to a device address; `done(bytes)` is called after each piece."""
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise EngineError(f"{path}: can't be read: {error.strerror}") from error

        def read(offset: int, into: Bytes) -> None:
            at = 0
            while at < len(into):
                try:
                    got = os.preadv(file, [into[at:].data], offset + at)
                except OSError as error:
                    raise EngineError(f"{path}: can't be read: {error.strerror}") from error
                if got == 0:
                    raise EngineError(f"{path}: ends after {offset + at} bytes, want {size}")
                at += got
            done(len(into))

        try:
            self.fill(target, size, read)
        finally:
            os.close(file)

    def free(self) -> None:
        """Frees stream, events and pinned memory."""
        for half in self._halves:
            half.free()
        for event in self._events:
            self.gpu.attempt("cuEventDestroy", event)
        if self._stream is not None:
            self.gpu.attempt("cuStreamDestroy", self._stream)
        self._halves, self._events, self._stream = [], [], None
