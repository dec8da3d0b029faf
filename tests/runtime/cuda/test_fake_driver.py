"""The driver that tests use in the place of CUDA's: it keeps count, refuses, and records what would break a GPU."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support.fake_cuda import SOURCES, Done, run
from support.host_kernel import stand_in
from tilecompile.targets.cpu.build import find_compiler

SPINNING = """
#include "host_kernel.h"
struct Job { volatile int* flag; };
void* host_kernel_prepare(const char*, void** p) { return new Job{*static_cast<volatile int**>(p[0])}; }
int host_kernel_resident(const void*) { return 1; }
void host_kernel_run(void* job, uint32_t, uint32_t, const int* kill) {
  while (!__atomic_load_n(kill, __ATOMIC_SEQ_CST) && !*static_cast<Job*>(job)->flag) {}
}
"""

HEAD = """
import ctypes, sys, time
import numpy as np
from cuda.bindings import driver as d

def ok(result):
    assert int(result[0]) == 0, result[0].name
    return result[1] if len(result) == 2 else result[1:]

def launch(flag, grid=4, stream=None, threads=288):
    config, value = d.CUlaunchConfig(), d.CUlaunchAttribute()
    value.id = d.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
    value.value.cooperative = 1
    config.gridDimX, config.gridDimY, config.gridDimZ = grid, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
    config.sharedMemBytes, config.hStream, config.attrs, config.numAttrs = 0, stream, [value], 1
    parameter = np.array([int(flag)], np.uint64)
    pointer = np.array([parameter.ctypes.data], np.uint64)
    return d.cuLaunchKernelEx(config, function, pointer.ctypes.data, 0)

ok(d.cuInit(0))
context = ok(d.cuCtxCreate(None, 0, 0))
image = open(sys.argv[1], "rb").read()
library = ok(d.cuLibraryLoadData(image, [], [], 0, [], [], 0))
function = ok(d.cuKernelGetFunction(ok(d.cuLibraryGetKernel(library, b"megakernel"))))
stream = ok(d.cuStreamCreate(1))
flag = ok(d.cuMemHostAlloc(4, 3))
word = ctypes.c_int.from_address(flag)
word.value = 0
"""

TAIL = """
ok(d.cuStreamDestroy(stream))
ok(d.cuMemFreeHost(flag))
ok(d.cuLibraryUnload(library))
ok(d.cuCtxDestroy(context))
"""


@pytest.fixture(scope="module")
def spinning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel that runs until a word of host memory is not 0."""
    folder = tmp_path_factory.mktemp("spinning")
    (folder / "k.cpp").write_text(SPINNING)
    options = ["-O1", "-shared", "-fPIC", f"-I{SOURCES}", "-o", str(folder / "k.so"), str(folder / "k.cpp")]
    subprocess.run([find_compiler(), *options], check=True)
    (folder / "image").write_bytes(stand_in([], 232448, "", {}).cubin)
    return folder / "k.so"


def start(kernel: Path, text: str, **settings: object) -> Done:
    """Runs a script with the kernel, to its end."""
    done = run(["-c", text, kernel.with_name("image")], kernel, **settings)
    assert done.code == 0, done.err
    return done


def test_a_kernel_runs_until_it_ends_and_nothing_is_left(spinning: Path) -> None:
    """What a stream gets after a kernel is done after it; other streams go on."""
    text = """
p, other = ok(d.cuMemAlloc(1000)), ok(d.cuStreamCreate(1))
ok(d.cuMemsetD8(p, 1, 1000))
ok(launch(flag, stream=stream))
got = np.zeros(1000, np.uint8)
ok(d.cuMemsetD8Async(p, 2, 1000, stream))
ok(d.cuMemcpyDtoHAsync(got.ctypes.data, p, 1000, other))
assert (got == 1).all() and d.cuStreamQuery(stream)[0].name == "CUDA_ERROR_NOT_READY"
word.value = 1
ok(d.cuStreamSynchronize(stream))
ok(d.cuMemcpyDtoH(got.ctypes.data, p, 1000))
assert (got == 2).all()
ok(d.cuMemFree(p))
ok(d.cuStreamDestroy(other))
"""
    done = start(spinning, HEAD + text + TAIL)
    assert done.clean().calls["cuMemsetD8Async"] == 1


MISTAKES = {
    "launch(flag, stream=stream); d.cuCtxSynchronize()": "cuCtxSynchronize: while a kernel runs",
    "launch(flag, stream=stream); d.cuMemAlloc(4)": "cuMemAlloc: while a kernel runs",
    "p = ok(d.cuMemAlloc(4)); launch(flag, stream=stream); d.cuMemFree(p)": "cuMemFree: while a kernel runs",
    "launch(flag, stream=stream); d.cuMemHostAlloc(4, 3)": "cuMemHostAlloc: while a kernel runs",
    "p = ok(d.cuMemAlloc(4)); launch(flag, stream=stream); d.cuMemsetD8(p, 0, 4)": "cuMemsetD8: while a kernel runs",
    "p = ok(d.cuMemAlloc(4)); d.cuMemFree(p); d.cuMemFree(p)": "cuMemFree: freed twice",
    "p = ok(d.cuMemAlloc(4)); d.cuMemsetD8(int(p) + 2, 0, 3)": "cuMemsetD8: memory that the device has no access to",
    "d.cuStreamDestroy(stream); launch(flag, stream=stream)": "cuLaunchKernelEx: a destroyed stream",
    "launch(flag, 1000, stream)": "cuLaunchKernelEx: a grid that doesn't fit on the device",
    "launch(flag, 924, stream); launch(flag, 1, ok(d.cuStreamCreate(1))); time.sleep(0.2)": (
        "cuLaunchKernelEx: blocks that wait for each other don't all fit on the device"
    ),
}


def test_mistakes_in_the_use_of_the_driver_are_reported(spinning: Path) -> None:
    """Each in a context of its own."""
    head, setup = HEAD.split("context = ", 1)
    script = (
        head
        + f"""
for text in {list(MISTAKES)!r}:
    exec("context = " + {setup!r} + text)
    ok(d.cuCtxDestroy(context))
"""
    )
    done = start(spinning, script)
    assert done.violations == list(MISTAKES.values())


def test_a_destroyed_context_takes_its_kernel_and_memory_along(spinning: Path) -> None:
    text = """
ok(d.cuMemAlloc(100))
ok(launch(flag, stream=stream))
ok(d.cuCtxDestroy(context))
ok(d.cuLibraryUnload(library))
"""
    start(spinning, HEAD + text).clean()


def test_objects_that_are_left_are_reported(spinning: Path) -> None:
    done = start(spinning, HEAD)
    left = {name for name, count in done.live.items() if count}
    assert left == {"contexts", "host memory", "streams", "libraries"}


def test_calls_fail_as_configured_and_after_a_fault(spinning: Path) -> None:
    """A call fails as it is configured to; a fault ends the kernel and all later calls of the context."""
    text = """
assert d.cuMemAlloc(1 << 20)[0].name == "CUDA_ERROR_OUT_OF_MEMORY"
ok(d.cuMemAlloc(1 << 19))
ok(launch(flag, stream=stream))
assert d.cuStreamQuery(stream)[0].name == "CUDA_ERROR_ILLEGAL_ADDRESS"
assert d.cuMemGetInfo()[0].name == "CUDA_ERROR_ILLEGAL_ADDRESS"
assert d.cuStreamSynchronize(stream)[0].name == "CUDA_ERROR_ILLEGAL_ADDRESS"
ok(d.cuCtxDestroy(context))
ok(d.cuLibraryUnload(library))
"""
    start(spinning, HEAD + text, memory=1000000, fail="cuStreamQuery:1:700").clean()


def test_devices_have_the_configured_attributes() -> None:
    text = """
from cuda.bindings import driver as d
A = d.CUdevice_attribute
d.cuInit(0)
print(d.cuDriverGetVersion()[1], d.cuDeviceGetCount()[1], d.cuDeviceCanAccessPeer(0, 1)[1])
for name in ("COMPUTE_CAPABILITY_MAJOR", "COMPUTE_CAPABILITY_MINOR", "MULTIPROCESSOR_COUNT", "COOPERATIVE_LAUNCH"):
    print(d.cuDeviceGetAttribute(getattr(A, "CU_DEVICE_ATTRIBUTE_" + name), 1)[1])
"""
    stated = {"devices": 2, "capability": "8.6", "sms": 84, "version": 12040, "peer": 0, "cooperative": 0}
    assert run(["-c", text], **stated).out.split() == ["12040", "2", "0", "8", "6", "84", "0"]
