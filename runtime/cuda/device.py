"""GPUs: which ones an engine runs on, whether they can, and a context on each."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tilecompile.runtime.cuda.driver import (
    NO_DEVICE,
    OUT_OF_MEMORY,
    SUCCESS,
    UNAVAILABLE,
    attempt,
    bindings,
    call,
    error_of,
    launch,
)
from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.folder.manifest import Manifest


class Gpu:
    """One GPU with a context of its own, so that nothing of an engine outlives it, even after a fault.

    `number` is the GPU's, as the driver counts them. Raises EngineError where an engine's process already uses it.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.where = f"GPU {number}"
        self._device = call(self.where, "cuDeviceGet", number)
        self.name = call(self.where, "cuDeviceGetName", 256, self._device).split(b"\0")[0].decode()
        self._context: Any = None
        self._lock: int | None = None

    def attribute(self, name: str) -> int:
        """A CU_DEVICE_ATTRIBUTE_ of the GPU."""
        driver = bindings()
        key = getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(call(self.where, "cuDeviceGetAttribute", key, self._device))

    @property
    def capability(self) -> str:
        """Compute capability, e.g. "9.0"."""
        return ".".join(str(self.attribute(f"COMPUTE_CAPABILITY_{part}")) for part in ("MAJOR", "MINOR"))

    def open(self) -> None:
        """Makes the context. EngineError if a process has the GPU: another engine's, or one that wants it alone."""
        self._claim()
        code, context = attempt("cuCtxCreate", None, 0, self._device)
        if code == UNAVAILABLE:
            raise EngineError(f"{self.where} ({self.name}): another process has it for itself (its compute mode)")
        if code != SUCCESS:
            raise error_of(f"{self.where} ({self.name})", "cuCtxCreate", code)
        self._context = context

    def _claim(self) -> None:
        """Locks the GPU for one engine: two resident kernels would wait for each other's SMs for ever."""
        uuid = call(self.where, "cuDeviceGetUuid", self._device)
        path = Path(tempfile.gettempdir(), f"tilecompile-gpu-{bytes(uuid.bytes).hex()}.lock")
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise EngineError(f"{path}: can't be opened: {error.strerror}") from error
        with contextlib.suppress(OSError):
            os.fchmod(lock, 0o666)  # another user's engine must be able to ask
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(lock, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise EngineError(
                f"{self.where} ({self.name}): already runs an engine, in process {holder}; close that first"
            ) from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._lock = lock

    def call(self, function: str, *args: Any) -> Any:
        """A call of the driver in the GPU's context. CudaError if it fails."""
        call(self.where, "cuCtxSetCurrent", self._context)
        return call(self.where, function, *args)

    def attempt(self, function: str, *args: Any) -> int:
        """A call of the driver in the GPU's context; returns its CUresult instead of raising."""
        code, _ = attempt("cuCtxSetCurrent", self._context)
        return code or attempt(function, *args)[0]

    def launch(
        self,
        function: Any,
        grid: int,
        block: int,
        shared: int,
        values: Sequence[npt.NDArray[Any]],
        stream: Any,
        cooperative: bool = False,
    ) -> None:
        """Launches a kernel; `values` are its parameters, one array of one element each."""
        call(self.where, "cuCtxSetCurrent", self._context)
        launch(f"{self.where} ({self.name})", function, grid, block, shared, values, stream, cooperative)

    def allocate(self, size: int, what: str) -> int:
        """Address of memory of the GPU. EngineError, which says how much is free, if there is not enough."""
        call(self.where, "cuCtxSetCurrent", self._context)
        code, address = attempt("cuMemAlloc", max(size, 16))
        if code == OUT_OF_MEMORY:
            raise EngineError(f"{self.where} ({self.name}): no {size} bytes for {what}, {self.free_memory()} are free")
        if code != SUCCESS:
            raise error_of(self.where, "cuMemAlloc", code)
        return int(address)

    def free_memory(self) -> int:
        """Bytes that can be allocated."""
        return int(self.call("cuMemGetInfo")[0])

    def close(self) -> None:
        """Destroys the context with all memory in it, whatever state a fault has left it in."""
        context, self._context = self._context, None
        if context is not None:
            attempt("cuCtxDestroy", context)
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def find_gpus(manifest: Manifest, numbers: Iterable[int], needed: int) -> list[Gpu]:
    """The first `needed` of the GPUs with these numbers; each could run the engine, memory aside.

    EngineError for a driver or GPU that is missing, too old, of another architecture, or too small.
    """
    numbers = list(numbers)
    bindings()
    code, _ = attempt("cuInit", 0)
    if code == NO_DEVICE:
        raise EngineError(f"{manifest.path}: the engine is for GPUs, and this machine has none that CUDA can use")
    if code != SUCCESS:
        raise error_of("CUDA", "cuInit", code)
    _check_driver(manifest)
    count = int(call("CUDA", "cuDeviceGetCount"))
    if len(numbers) < needed or max(numbers) >= count:
        have = f"GPUs {', '.join(map(str, numbers))}" if max(numbers) >= count else f"{len(numbers)} GPUs"
        raise EngineError(
            f"{manifest.path}: the engine is for {manifest.devices} devices, asked for {have}; this machine has "
            f"{count} (on_one_gpu runs all devices on one, for tests)"
        )
    gpus = [Gpu(number) for number in numbers[:needed]]
    for gpu in gpus:
        _check_gpu(manifest, gpu)
    return gpus


def _check_driver(manifest: Manifest) -> None:
    version = int(call("CUDA", "cuDriverGetVersion"))
    stated = str(manifest.data["resources"]["toolkit"])
    major, minor = (int(part) for part in stated.split(".")[:2])
    if version // 1000 < major:
        raise EngineError(
            f"{manifest.path}: the kernel was built with CUDA {major}.{minor} and needs a driver for {major}.0 or "
            f"newer; this machine's is for CUDA {version // 1000}.{version % 1000 // 10}"
        )


def _check_gpu(manifest: Manifest, gpu: Gpu) -> None:
    """EngineError unless a GPU has the engine's architecture, and the shared memory and features that it needs."""
    target, who = manifest.data["target"]["name"], f"{gpu.where} ({gpu.name})"
    digits = target.removeprefix("sm_").removesuffix("a")
    expected = f"{digits[:-1]}.{digits[-1]}"
    if gpu.capability != expected:
        raise EngineError(
            f"{manifest.path}: the engine is for {target} (compute capability {expected}), {who} has {gpu.capability}; "
            "compile the model for it with --machine or --target"
        )
    needed = int(manifest.data["resources"]["kernel"]["shared"])
    found = gpu.attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")
    if needed > found:
        raise EngineError(f"{manifest.path}: a block needs {needed} bytes of shared memory, {who} gives {found}")
    for name, words in (
        ("COOPERATIVE_LAUNCH", "cooperative launches"),
        ("VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED", "virtual memory management"),
    ):
        if not gpu.attribute(name):
            raise EngineError(f"{manifest.path}: the engine needs {words}, {who} has none")


def check_peers(gpus: list[Gpu]) -> None:
    """EngineError unless every GPU reaches the memory of every other one, with atomics."""
    driver = bindings()
    atomics = driver.CUdevice_P2PAttribute.CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED
    for a in gpus:
        for b in gpus:
            if a is b:
                continue
            pair = a._device, b._device
            if not call(a.where, "cuDeviceCanAccessPeer", *pair):
                raise EngineError(f"GPU {a.number} can't reach the memory of GPU {b.number}: they have no link")
            if not call(a.where, "cuDeviceGetP2PAttribute", atomics, *pair):
                raise EngineError(f"GPU {a.number} has no atomics in the memory of GPU {b.number}: want NVLink")
