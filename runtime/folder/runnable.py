"""Whether this machine can run an engine: kernel, weights, architecture, CPU features, free memory."""

from __future__ import annotations

import platform

from tilecompile.runtime import machine
from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.folder.files import read_bytes
from tilecompile.runtime.folder.manifest import CUBIN, KERNEL, Manifest

_ELF_MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}


def check_runnable(manifest: Manifest, drawn: bool = False) -> None:
    """EngineError unless the engine has a kernel, and its weights (which on GPUs may be `drawn` instead)."""
    path = manifest.path
    if not manifest.has_kernel:
        name = manifest.data["target"]["name"]
        raise EngineError(f"{path}: the engine has no kernel ({KERNEL}) for its target {name} and can't be run")
    if not manifest.has_weights and not drawn:
        how = '; weights="random:SEED" draws some' if manifest.kernel == CUBIN else ""
        raise EngineError(f"{path}: the engine has no weights: it was compiled with --no-weights and can't be run{how}")


def check_cpu(manifest: Manifest, threads: int) -> None:
    """EngineError unless this machine can run a CPU's kernel with `threads` threads: architecture, features, memory."""
    path = manifest.path
    if manifest.kernel != KERNEL:
        raise EngineError(f"{path}: the engine is for {manifest.data['target']['name']}, and this is for CPU engines")
    kernel = manifest.file(KERNEL)
    head = read_bytes(kernel, 20)
    found = _ELF_MACHINES.get(int.from_bytes(head[18:20], "little")) if head[:4] == b"\x7fELF" else None
    here = platform.machine().replace("AMD64", "x86_64").replace("arm64", "aarch64")
    if found and found != here:
        raise EngineError(f"{kernel}: is built for {found}, this machine is {here}; compile the model on or for it")
    target = manifest.data["target"]
    missing = sorted(set(target["features"]) - machine.cpu_features())
    if missing:
        raise EngineError(
            f"{path}: the kernel is built for {target['isa']} and this CPU lacks {', '.join(missing)}; "
            "compile for another --target (cpu-portable runs everywhere)"
        )
    needed, free = manifest.memory(threads), machine.free_memory()
    if free is not None and needed > free:
        raise EngineError(f"{manifest.folder}: the engine needs {needed} bytes of memory, {free} are free")
