"""The C interface of a CPU engine's kernel: launch once, submit requests, wait, abort, close."""

from __future__ import annotations

import ctypes
import os
import tempfile
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.cpu.memory import address
from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.format import FORMAT_VERSION, STATUS
from tilecompile.runtime.kernel import Record

_FUNCTIONS = {
    "tc_abi": (ctypes.c_uint32, []),
    "tc_launch": (ctypes.c_void_p, [ctypes.c_void_p]),
    "tc_submit": (ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]),
    "tc_wait": (ctypes.c_uint32, [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p]),
    "tc_tokens": (ctypes.c_void_p, [ctypes.c_void_p]),
    "tc_abort": (None, [ctypes.c_void_p]),
    "tc_allow": (ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]),
    "tc_close": (None, [ctypes.c_void_p]),
}


def open_kernel(path: Path) -> ctypes.CDLL:
    """Loads a kernel and declares its functions. EngineError if it isn't a kernel of this format version."""
    # The loader takes an equal path for an equal library, and an engine may have been replaced since: use a new path.
    with tempfile.TemporaryDirectory(prefix="tilecompile-") as folder:
        link = os.path.join(folder, path.name)
        os.symlink(path.resolve(), link)
        try:
            library = ctypes.CDLL(link)
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise EngineError(f"{path}: can't be loaded: {str(error).replace(link, path.name)}") from error
    version = library.tc_abi()
    if version != FORMAT_VERSION:
        raise EngineError(f"{path}: the kernel's format version is {version}, want {FORMAT_VERSION}")
    return library


class Kernel:
    """A launched kernel: its resident threads. Calls from several threads are safe; each lasts 50 ms at most.

    `status` is the last state seen, `memory` keeps alive what the kernel works on.
    """

    logit_rows: int | None = None
    """Positions whose logits one request can give: any number."""

    def __init__(self, library: ctypes.CDLL, launch: Record, memory: object) -> None:
        self.status: Record = np.zeros(1, STATUS.dtype)
        self._library = library
        self._memory: tuple[object, ...] = (launch, memory)
        self._mutex = threading.RLock()
        self._gate = threading.RLock()  # keeps the handle while a request is aborted, which waits for no one
        self._closing = False
        self._pid = os.getpid()
        self._kept: list[object] = []  # what the kernel may still write to
        self._handle: int | None = library.tc_launch(address(launch))
        if not self._handle:
            raise EngineError("the kernel can't be launched: not enough memory, or no more threads are allowed")
        self.wait(0, 0)

    def field(self, name: str) -> int:
        """A field of the last state seen."""
        return int(self.status[name][0])

    def fields(self, name: str) -> npt.NDArray[np.uint32]:
        """A field of several numbers."""
        return np.asarray(self.status[name][0], np.uint32)

    @property
    def handle(self) -> int:
        """The handle, for functions that only some kernels have, such as profiling. EngineError once it is closed."""
        return self._check()

    @property
    def closed(self) -> bool:
        """Whether the kernel is closed or about to be."""
        return self._closing or os.getpid() != self._pid

    def _check(self) -> int:
        if os.getpid() != self._pid:
            raise EngineError(f"the engine was loaded in process {self._pid}, whose threads are not in this fork")
        if self._closing or self._handle is None:
            raise EngineError("the engine is closed")
        return self._handle

    def submit(self, request: Record, logits: npt.NDArray[np.float32] | None, keep: object = None) -> int:
        """Starts a request: 0, or -1 while one is running, or -2 after a stall.

        Keeps `logits` alive meanwhile, and `keep`, which has what else the kernel writes to.
        """
        self._check()
        with self._mutex:
            self._kept.append((logits, keep))  # first: an interrupt may come as soon as the kernel has the address
            result = int(self._library.tc_submit(self._check(), address(request)))
            if result == 0:
                del self._kept[:-1]
            else:
                self._kept.pop()
            return result

    def release(self) -> None:
        """Drops the logits of a request that has ended."""
        self._kept.clear()

    def wait(self, generated: int, timeout_ms: int) -> int:
        """Waits until more than `generated` tokens exist or the request has ended; returns the state."""
        status = np.zeros(1, STATUS.dtype)
        self._check()  # before the mutex, which in a fork may never be released
        with self._mutex:
            state = int(self._library.tc_wait(self._check(), generated, timeout_ms, address(status)))
            self.status = status
        return state

    def tokens(self, begin: int, end: int) -> list[int]:
        """Generated ids of the current or last request."""
        self._check()
        with self._mutex:
            start = self._library.tc_tokens(self._check())
            return list((ctypes.c_int32 * (end - begin)).from_address(start + 4 * begin))

    def abort(self) -> None:
        """Ends the current request at the next step."""
        self._check()
        with self._gate:
            self._library.tc_abort(self._check())

    def allow(self, bits: npt.NDArray[np.uint8]) -> None:
        """Goes on with a request that is PAUSED: these ids can come next. Does nothing if it was aborted meanwhile."""
        self._check()
        with self._mutex:
            self._library.tc_allow(self._check(), address(bits))

    def close(self) -> None:
        """Ends the resident threads; a request that runs ends with EngineError in the thread that waits for it."""
        self._closing = True
        if os.getpid() != self._pid:
            return  # a fork: threads and whoever held the mutex are in the other process
        with self._mutex, self._gate:
            if self._handle is not None:
                self._library.tc_abort(self._handle)
                self._library.tc_close(self._handle)
                self._handle = None
        self._memory, self._kept = (), []
