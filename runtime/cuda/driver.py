"""Calls of the CUDA driver, with errors in words."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.errors import EngineError

SUCCESS, NOT_READY = 0, 600
"""Results that are no errors: done, and still running."""

OUT_OF_MEMORY, NO_DEVICE, UNAVAILABLE, TOO_LARGE = 2, 100, 46, 720
"""Results with their own error texts: no memory, no GPU, a GPU that another process has for itself, too many blocks."""


class CudaError(EngineError):
    """A call of the driver failed: `function`, and the CUresult as `code` and `name`."""

    def __init__(self, where: str, function: str, code: int, name: str, description: str) -> None:
        super().__init__(f"{where}: {function} failed: {name} ({description})")
        self.function, self.code, self.name = function, code, name


@functools.cache
def bindings() -> ModuleType:
    """`cuda.bindings.driver`. EngineError if there is no driver to bind to.

    Modules are loaded whole and streams get hardware queues of their own, unless the user's environment says otherwise:
    neither a late load nor another stream's work may wait for the resident kernel, which ends last.
    """
    os.environ.setdefault("CUDA_MODULE_LOADING", "EAGER")
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    try:
        from cuda.bindings import driver

        driver.cuDriverGetVersion()
    except Exception as error:  # what cuda-bindings raises where it finds no library differs between its versions
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise EngineError(f"this machine has no CUDA driver that can be loaded (libcuda.so.1): {why}") from error
    return cast(ModuleType, driver)


def attempt(function: str, *args: Any) -> tuple[int, Any]:
    """Calls a function of the driver; returns its CUresult and its one other result, or a tuple of the others."""
    result = getattr(bindings(), function)(*args)
    code, *values = result if isinstance(result, tuple) else (result,)
    return int(code), values[0] if len(values) == 1 else tuple(values)


def call(where: str, function: str, *args: Any) -> Any:
    """Calls a function of the driver; returns its result. CudaError, which begins with `where`, if it fails."""
    code, value = attempt(function, *args)
    if code != SUCCESS:
        raise error_of(where, function, code)
    return value


def error_of(where: str, function: str, code: int) -> CudaError:
    """The error for a CUresult that is not SUCCESS."""
    return CudaError(where, function, code, _text("cuGetErrorName", code), _text("cuGetErrorString", code))


def _text(function: str, code: int) -> str:
    driver = bindings()
    try:
        found, text = getattr(driver, function)(driver.CUresult(code))
    except ValueError:  # a result that this version of the bindings doesn't know
        return f"CUresult {code}"
    return text.decode() if int(found) == SUCCESS and text else f"CUresult {code}"


def launch(
    where: str,
    function: Any,
    grid: int,
    block: int,
    shared: int,
    values: Sequence[npt.NDArray[Any]],
    stream: Any,
    cooperative: bool = False,
) -> None:
    """Launches a kernel on the current context; `values` are its parameters, one array of one element each."""
    driver = bindings()
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = block, 1, 1
    config.sharedMemBytes, config.hStream = shared, stream
    if cooperative:
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
        attribute.value.cooperative = 1
        config.attrs, config.numAttrs = [attribute], 1
    addresses = np.array([v.__array_interface__["data"][0] for v in values], np.uint64)
    code, _ = attempt("cuLaunchKernelEx", config, function, addresses.__array_interface__["data"][0], 0)
    if code == TOO_LARGE:
        raise EngineError(f"{where}: its SMs can't hold {grid} blocks at once; another process may be using them")
    if code != SUCCESS:
        raise error_of(where, "cuLaunchKernelEx", code)
