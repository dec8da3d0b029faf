"""Build step of the CPU target: the system's C++ compiler makes a shared object of the emitted source."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tilecompile.errors import InputError

COMMON = (
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-shared",
    "-pthread",
    "-fno-strict-aliasing",
    "-ffp-contract=fast",
    "-fno-math-errno",
)


@dataclass(frozen=True)
class Isa:
    """An instruction set: compiler flags, and the CPU features that a machine must have to run the result."""

    name: str
    flags: tuple[str, ...]
    features: tuple[str, ...]


ISAS = {
    isa.name: isa
    for isa in (
        Isa(
            "avx512",
            ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
            ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"),
        ),
        Isa("avx2", ("-mavx2", "-mfma", "-mf16c"), ("avx2", "fma", "f16c")),
        Isa("portable", (), ()),
    )
}


def find_compiler() -> str:
    """Path of the C++ compiler: $CXX, else c++, g++ or clang++. InputError when there is none."""
    named = os.environ.get("CXX")
    for name in (named,) if named else ("c++", "g++", "clang++"):
        found = shutil.which(name)
        if found:
            return found
    what = f"$CXX names {named!r}, which is not there" if named else "looked for c++, g++ and clang++"
    raise InputError(f"no C++ compiler found: {what}; install one or set CXX")


def build(source: Path, output: Path, isa: Isa, flags: tuple[str, ...] = ()) -> list[str]:
    """Compiles `source` to the shared object `output`, with further flags; returns the command.

    It is built beside the source and moved to `output` once complete. InputError with the compiler's first error.
    """
    command = [find_compiler(), *COMMON, *isa.flags, *flags, "-o", output.name, source.name]
    done = subprocess.run(command, cwd=source.parent, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise InputError(f"{command[0]} failed on {source.name}: {errors[0] if errors else done.returncode}")
    (source.parent / output.name).replace(output)
    return command
