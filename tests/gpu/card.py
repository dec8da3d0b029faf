"""One GPU as the script's own kernels use it: a context, memory, kernels that take one record, times of launches.

`tests/gpu/test_script.py` has a stand-in with the same methods, which runs bodies on the host.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from statistics import median
from types import TracebackType
from typing import Any, Self

import numpy as np

from tilecompile.runtime.cuda.driver import bindings, call
from tilecompile.runtime.format import BLOCK

Array = np.ndarray


class Kernel:
    """A function of a loaded module, with its dynamic shared memory in bytes."""

    def __init__(self, function: Any, shared: int) -> None:
        self.function, self.shared = function, shared


class Card:
    """A context on a GPU. A context manager: all that was made in it is freed with it."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self._call("cuInit", 0)
        self._device = self._call("cuDeviceGet", number)
        self.name: str = self._call("cuDeviceGetName", 256, self._device).split(b"\0")[0].decode()
        self.driver = str(self._call("cuDriverGetVersion"))
        self._context = self._call("cuCtxCreate", None, 0, self._device)
        self._libraries: list[Any] = []
        self.stream = self._call("cuStreamCreate", 0)  # ordered with copies, which other streams are not

    def _call(self, function: str, *args: Any) -> Any:
        return call(f"GPU {self.number}", function, *args)

    def attribute(self, name: str) -> int:
        """A CU_DEVICE_ATTRIBUTE_ of the GPU."""
        key = getattr(bindings().CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self._call("cuDeviceGetAttribute", key, self._device))

    @property
    def sms(self) -> int:
        """Multiprocessors."""
        return self.attribute("MULTIPROCESSOR_COUNT")

    def free_bytes(self) -> int:
        """Memory that can be allocated."""
        return int(self._call("cuMemGetInfo")[0])

    def allocate(self, size: int) -> int:
        """Address of so many bytes, which hold anything."""
        return int(self._call("cuMemAlloc", max(16, size)))

    def free(self, address: int) -> None:
        """Frees memory."""
        self._call("cuMemFree", address)

    def write(self, address: int, array: Array) -> None:
        """Copies an array to the GPU."""
        array = np.ascontiguousarray(array)
        if array.nbytes:
            self._call("cuMemcpyHtoD", address, array.ctypes.data, array.nbytes)

    def put(self, array: Array) -> int:
        """Address of a copy of an array."""
        address = self.allocate(array.nbytes)
        self.write(address, array)
        return address

    def read(self, address: int, like: Array) -> Array:
        """A copy of memory, in an array of the same type and shape as one."""
        out = np.empty_like(like)
        if out.nbytes:
            self._call("cuMemcpyDtoH", out.ctypes.data, address, out.nbytes)
        return out

    def zero(self, address: int, size: int) -> None:
        """Fills memory with zeros."""
        self._call("cuMemsetD8", address, 0, size)

    def host(self, like: Array) -> tuple[Array, int]:
        """Host memory that the GPU can read and write, filled like an array, and its address there."""
        driver = bindings()
        flags = driver.CU_MEMHOSTALLOC_PORTABLE | driver.CU_MEMHOSTALLOC_DEVICEMAP
        address = int(self._call("cuMemHostAlloc", max(16, like.nbytes), flags))
        view = np.frombuffer((ctypes.c_uint8 * like.nbytes).from_address(address), like.dtype).reshape(like.shape)
        view[...] = like
        return view, int(self._call("cuMemHostGetDevicePointer", address, 0))

    def kernel(self, cubin: bytes, name: str, shared: int = 0) -> Kernel:
        """A kernel of a module, which gets so much dynamic shared memory."""
        library = self._call("cuLibraryLoadData", cubin, [], [], 0, [], [], 0)
        self._libraries.append(library)
        function = self._call("cuKernelGetFunction", self._call("cuLibraryGetKernel", library, name.encode()))
        key = bindings().CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._call("cuFuncSetAttribute", function, key, shared)
        return Kernel(function, shared)

    def launch(self, kernel: Kernel, grid: int, record: Array, programmatic: bool = False) -> None:
        """Launches a kernel. `programmatic`: it may begin before the launch before it has ended."""
        driver = bindings()
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = BLOCK.threads, 1, 1
        config.sharedMemBytes, config.hStream = kernel.shared, self.stream
        if programmatic:
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            config.attrs, config.numAttrs = [attribute], 1
        record = np.ascontiguousarray(record)
        parameters = np.array([record.ctypes.data], np.uint64)
        self._call("cuLaunchKernelEx", config, kernel.function, parameters.ctypes.data, 0)

    def wait(self) -> None:
        """Waits until all launches have ended."""
        self._call("cuStreamSynchronize", self.stream)

    def captured(self, work: Callable[[], None]) -> Any:
        """What `work` launches, as a graph that can be launched (cuGraphLaunch on `stream`)."""
        mode = bindings().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self.stream, mode)
        work()
        return self._call("cuGraphInstantiate", self._call("cuStreamEndCapture", self.stream), 0)

    def replay(self, graph: Any) -> None:
        """Launches a graph."""
        self._call("cuGraphLaunch", graph, self.stream)

    def seconds(self, work: Callable[[], None], repeats: int = 7, warm: int = 2) -> float:
        """Median time of what `work` launches, between two events."""
        begin, end = (self._call("cuEventCreate", 0) for _ in range(2))
        found = []
        for i in range(warm + repeats):
            self._call("cuEventRecord", begin, self.stream)
            work()
            self._call("cuEventRecord", end, self.stream)
            self._call("cuEventSynchronize", end)
            if i >= warm:
                found.append(1e-3 * float(self._call("cuEventElapsedTime", begin, end)))
        for event in (begin, end):
            self._call("cuEventDestroy", event)
        return median(found)

    def close(self) -> None:
        """Ends the context."""
        while self._libraries:
            self._call("cuLibraryUnload", self._libraries.pop())
        context, self._context = self._context, None
        if context is not None:
            self._call("cuCtxDestroy", context)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
