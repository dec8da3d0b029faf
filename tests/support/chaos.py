"""Engines whose kernel waits for random times at every instruction, to show that timing changes no result."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from tilecompile.runtime.folder.manifest import NAME, write_manifest
from tilecompile.targets.cpu.build import ISAS, build

HEADER = Path(__file__).parent / "chaos.h"


def chaotic(engine: Path, output: Path, seed: int) -> Path:
    """A copy of an engine with its kernel built again from its kernel.cpp, with the delays of `chaos.h`."""
    shutil.copytree(engine, output)
    data = json.loads((output / NAME).read_text())
    isa = ISAS[data["target"]["isa"]]
    flags = (*isa.flags, "-include", str(HEADER), f"-DCHAOS_SEED={seed}ull")
    build(output / "kernel.cpp", output / "kernel.so", replace(isa, flags=flags))
    return rehashed(output)


def rehashed(engine: Path) -> Path:
    """Writes the manifest anew after the engine's files were changed; the weights keep their hashes."""
    data = json.loads((engine / NAME).read_text())
    data["files"] = {name: entry for name, entry in data["files"].items() if name.startswith("weights/")}
    write_manifest(engine, data)
    return engine
