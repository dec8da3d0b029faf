"""A CUDA driver without a GPU (`fake_cuda/`), for processes of their own: builds it, runs them with it, reports.

It is configured by the environment: FAKE_CUDA_DEVICES, _CAPABILITY ("9.0"), _SMS, _VERSION (13000), _MEMORY (bytes a
device), _USED (bytes that others have of it), _SHARED (bytes a block), _PEER and _COOPERATIVE (0 or 1), _MODE (the
compute mode), _KERNEL (a library of host_kernel.py), _FAIL ("cuMemCreate:2:2,…": what the second call of a function
returns; 700 and its like are a kernel's faults, which all later calls of the context return too), _REPORT (a path).
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support.paths import SUPPORT, TESTS
from tilecompile.targets.cpu.build import find_compiler
from tilecompile.targets.cuda.build import _cuda_headers

SOURCES = SUPPORT / "fake_cuda"
LIVE = (
    *("contexts", "memory", "host memory", "streams", "events", "libraries", "reservations", "mappings"),
    "kernels",
)


@dataclass(frozen=True)
class Done:
    """How a process ended, and the driver's report of it: calls by function, what was left, what was done wrong."""

    code: int
    out: str
    err: str
    calls: dict[str, int]
    live: dict[str, int]
    violations: list[str]

    def clean(self) -> Done:
        """Itself; AssertionError if it left anything or did anything that would hang or break a card."""
        assert not self.violations, self.violations
        assert set(self.live) == set(LIVE)
        assert not any(self.live.values()), self.live
        return self


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    made = tempfile.TemporaryDirectory(prefix="tilecompile-test-")
    includes = [f"-I{folder}" for folder in _cuda_headers()]
    options = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", *includes]
    library = os.path.join(made.name, "libcuda.so.1")
    subprocess.run([find_compiler(), *options, "-o", library, str(SOURCES / "driver.cpp")], check=True)
    return made


def environment(kernel: Path | None = None, **settings: object) -> dict[str, str]:
    """The environment of a process that finds the driver; `fail="cuMemAlloc:1:2"` sets FAKE_CUDA_FAIL and so on."""
    those = settings | ({"kernel": kernel} if kernel else {})
    stated = {f"FAKE_CUDA_{name.upper()}": str(value) for name, value in those.items()}
    paths = [str(TESTS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    library = [_folder().name, *os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)]
    searched = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "LD_LIBRARY_PATH": ":".join(filter(None, library))}
    return {**os.environ, **searched, **stated}


def run(arguments: Sequence[object], kernel: Path | None = None, timeout: float = 120, **settings: object) -> Done:
    """Runs Python with the driver; the arguments are Python's, e.g. `["-c", "…"]` or `["-m", "tilecompile", …]`."""
    with tempfile.TemporaryDirectory(prefix="tilecompile-test-") as folder:
        report = Path(folder, "report.json")
        stated = environment(kernel, report=report, **settings) | {"TMPDIR": folder}  # locks of GPUs are there
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, env=stated, capture_output=True, text=True, timeout=timeout)
        if not report.exists():
            raise AssertionError(f"no report, exit code {done.returncode}: {done.stderr[-2000:]}")
        found = json.loads(report.read_text())
    return Done(done.returncode, done.stdout, done.stderr, found["calls"], found["live"], found["violations"])
