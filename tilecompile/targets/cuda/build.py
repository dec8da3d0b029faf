"""Build step of the CUDA targets: NVRTC makes a cubin of the emitted source; no GPU, driver or toolkit is needed.

The result is checked against the limits of an SM (`check_resources`), and its PTX against what must and must not be
in it (`check_instructions`): a kernel that spills is slow, and one that is too large can't be launched.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tilecompile.errors import InputError
from tilecompile.runtime.format import BLOCK, SHARED_BYTES
from tilecompile.targets.cuda.compile_cache import cached, key_of

ARCHITECTURES = ("sm_90a", "sm_100a")

REGISTERS = 65536
"""Registers of an SM, a quarter for each of its four schedulers, over which a block's warps are divided."""

FORBIDDEN = ("ld.local", "st.local", "ld.global.nc", "call")
"""Instructions that no kernel may hold: local memory, loads that may miss what another SM has just written, calls."""

MISSING = "kernels for GPUs need NVRTC and its headers: pip install 'tilecompile[compile]'"

HEADERS = {
    "cstdint": """
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = signed short;
using uint16_t = unsigned short;
using int32_t = signed int;
using uint32_t = unsigned int;
using int64_t = signed long long;
using uint64_t = unsigned long long;
using uintptr_t = unsigned long;
""",
    "cstddef": "#define offsetof(type, member) __INTADDR__(&((type*)0)->member)\n",
}
"""Headers of the standard library that NVRTC lacks, as far as kernels need them (types as TileLang defines them)."""


@dataclass(frozen=True)
class Resources:
    """What a kernel takes: registers a thread; bytes of local memory and of spills a thread; shared memory a block."""

    registers: int
    local: int
    spills: int
    shared: int


@dataclass(frozen=True)
class Built:
    """A module: its cubin and PTX, and the resources of each kernel in it by name (static shared memory only)."""

    cubin: bytes
    ptx: str
    kernels: Mapping[str, Resources]


def build(source: str, architecture: str, include: Iterable[Path] = (), flags: tuple[str, ...] = ()) -> Built:
    """The module of a CUDA source for one of ARCHITECTURES, made anew only where it isn't cached.

    `include` are folders of further headers, whose content must follow from the versions of installed packages.
    Raises InputError with the compiler's first error, or if NVRTC and its headers are not installed.
    """
    options = _options(architecture, flags)
    packages = ("nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-cuda-cccl", "tilelang")
    key = key_of([source, *options, *(_version(package) for package in packages)])
    stored = cached("cubin", key, lambda: _pack(_compile(source, [*options, *_include(include)])))
    return _unpack(stored)


def toolkit() -> str:
    """The version of CUDA that modules are built with, e.g. "13.0". InputError if NVRTC is not installed."""
    try:
        from cuda.bindings import nvrtc

        _, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise InputError(f"{MISSING} ({error})") from error
    return f"{major}.{minor}"


def _options(architecture: str, flags: tuple[str, ...]) -> list[str]:
    return [f"--gpu-architecture={architecture}", "--std=c++20", "--device-int128", "--ptxas-options=-v", *flags]


def _include(folders: Iterable[Path]) -> list[str]:
    found = _cuda_headers()
    return [f"--include-path={path}" for path in (*found, *folders)]


@functools.cache
def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {package}"


@functools.cache
def _cuda_headers() -> tuple[Path, ...]:
    """The CUDA headers as pip packages install them."""
    try:
        files = importlib.metadata.files("nvidia-cuda-runtime") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(f"{MISSING} ({error})") from error
    header = next((file for file in files if file.name == "cuda_fp16.h"), None)
    if header is None:
        raise InputError(f"{MISSING} (nvidia-cuda-runtime has no cuda_fp16.h)")
    folder = Path(str(header.locate())).parent
    return folder, folder / "cccl"


def _compile(source: str, options: list[str]) -> Built:
    try:
        from cuda.bindings import nvrtc

        failed, program = nvrtc.nvrtcCreateProgram(
            source.encode(),
            b"kernel.cu",
            len(HEADERS),
            [text.encode() for text in HEADERS.values()],
            [name.encode() for name in HEADERS],
        )
    except (ImportError, RuntimeError) as error:
        raise InputError(f"{MISSING} ({error})") from error
    if failed:
        raise InputError(f"NVRTC failed: {failed.name}")
    try:
        (failed,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode(errors="replace")
        if failed:
            errors = [line for line in log.splitlines() if "error" in line] or log.splitlines()
            raise InputError(f"NVRTC failed on kernel.cu: {errors[0].strip() if errors else failed.name}")
        cubin = _text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
        ptx = _text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program).rstrip(b"\0").decode()
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return Built(cubin, ptx, parse_log(log))


def _text(size_of, get, program) -> bytes:  # type: ignore[no-untyped-def]
    """What a pair of NVRTC's functions gives: the size, and the bytes into a buffer of that size."""
    _, size = size_of(program)
    buffer = bytes(size)
    get(program, buffer)
    return buffer


_PROPERTIES = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_STACK = re.compile(r"(\d+) bytes cumulative stack size")
_SHARED = re.compile(r"(\d+) bytes smem")


def parse_log(log: str) -> dict[str, Resources]:
    """The resources of each kernel, from what the assembler says with -v; spills of what it calls count too."""
    kernels: dict[str, Resources] = {}
    name, stack, spills = "", 0, 0
    for line in log.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)'", line):
            name, stack, spills = entry[1], 0, 0
        elif found := _PROPERTIES.search(line):
            stack, spills = max(stack, int(found[1])), spills + int(found[2]) + int(found[3])
        elif name and (used := _USED.search(line)):
            cumulative, shared = _STACK.search(line), _SHARED.search(line)
            local = max(stack, int(cumulative[1]) if cumulative else 0)
            kernels[name] = Resources(int(used[1]), local, spills, int(shared[1]) if shared else 0)
            name = ""
    return kernels


def check_resources(what: str, used: Resources, dynamic: int = 0, threads: int = BLOCK.threads) -> None:
    """InputError unless one block of a kernel fits on an SM, with `dynamic` bytes of shared memory, without spills."""
    if used.spills or used.local:
        raise InputError(f"{what} keeps {used.local} bytes a thread in local memory and spills {used.spills}, want 0")
    most = REGISTERS // (-(-threads // 128) * 128)
    if used.registers > most:
        raise InputError(f"{what} takes {used.registers} registers a thread, of {threads} each has {most} at most")
    if used.shared + dynamic > SHARED_BYTES:
        raise InputError(f"{what} takes {used.shared + dynamic} bytes of shared memory, want at most {SHARED_BYTES}")


_INSTRUCTION = re.compile(r"(?:^|[;{}])\s*(?:[$\w]+:\s*)?(?:@!?%?\w+\s+)?([a-z]\w*(?:[.:]+\w+)*)[ ;]", re.M)


def instructions(ptx: str) -> dict[str, Counter[str]]:
    """The instructions of each kernel in a PTX text, with how often they stand there."""
    found: dict[str, Counter[str]] = {}
    for body in re.split(r"^(?=[^\n]*\.(?:entry|func)\b)", ptx, flags=re.M):
        if name := re.match(r"[^\n]*\.entry (\w+)", body):
            found[name[1]] = Counter(_INSTRUCTION.findall(body))
    return found


def check_instructions(what: str, held: Mapping[str, int], required: Iterable[str] = ()) -> None:
    """InputError if a kernel's instructions have one of FORBIDDEN, or lack one of `required`, whatever its suffixes."""
    for name in held:
        if any(name == wrong or name.startswith(wrong + ".") for wrong in FORBIDDEN):
            raise InputError(f"{what} has the instruction {name}, want none")
    for name in required:
        if not any(other == name or other.startswith(name + ".") for other in held):
            raise InputError(f"{what} has no instruction {name}")


def _pack(built: Built) -> bytes:
    head = json.dumps({"cubin": len(built.cubin), "kernels": {n: asdict(r) for n, r in built.kernels.items()}})
    return head.encode() + b"\n" + built.cubin + built.ptx.encode()


def _unpack(data: bytes) -> Built:
    head, _, rest = data.partition(b"\n")
    stated = json.loads(head)
    size = stated["cubin"]
    return Built(rest[:size], rest[size:].decode(), {n: Resources(**r) for n, r in stated["kernels"].items()})
