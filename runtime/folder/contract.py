"""What a kernel was built for, stated in the kernel itself: sizes, and every address that its bodies form.

Bodies take their operands on trust: another buffer, offset or tile would lead them out of their memory, and no check
of single numbers can see that. So the compiler writes a description into the kernel's data, with one hash over all
that addresses derive from, and loading compares it with manifest and tables. The order of the instructions and their
events are not part of it: a wrong schedule can stall or give wrong numbers, but it leaves the addresses alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.folder.files import read_bytes
from tilecompile.runtime.folder.manifest import KERNEL, Manifest
from tilecompile.runtime.folder.rows import entries

MARK = "tilecompile-kernel:"
"""What the description begins with; it ends with a zero byte."""

KEYS = ("vocab_size", "max_seq_len", "eos_token_ids", "scratch_bytes", "io", "kinds")
"""Keys of engine.json that a kernel is built for."""

ADDRESSES = "addresses"

Tables = Mapping[str, npt.NDArray[np.void]]


def contract(data: Mapping[str, Any], tables: Tables) -> dict[str, Any]:
    """The description of a kernel for a manifest's content and tables."""
    return {**{key: data[key] for key in KEYS}, ADDRESSES: addresses(tables)}


def addresses(tables: Tables) -> str:
    """sha256 over the buffers and, in the order of operators and tiles, each instruction's body, operands and tape."""
    found = hashlib.sha256(tables["buffers"].tobytes())
    instructions = tables["instructions"]
    order = np.lexsort((*instructions["tile"].T[::-1], instructions["op"]))
    for field in ("kind", "flags", "op", "tile", "operand_count", "tape_count"):
        found.update(np.ascontiguousarray(instructions[field][order]).tobytes())
    for name, table in (("operand", "operands"), ("tape", "tape")):
        rows, _ = entries(instructions[order], name)
        found.update(tables[table][rows].tobytes())
    return found.hexdigest()


def check_contract(manifest: Manifest, tables: Tables) -> None:
    """EngineError unless the kernel was built for this manifest and these tables (whose indices are in range)."""
    path = manifest.file(manifest.kernel or KERNEL)
    stated = _read(path)
    for key, value in stated.items():
        if key != ADDRESSES and manifest.data.get(key) != value:
            words = json.dumps(value)[:80], json.dumps(manifest.data.get(key))[:80]
            raise EngineError(f"{path}: was built for {key} {words[0]}, {manifest.path} says {words[1]}")
    if ADDRESSES in stated and stated[ADDRESSES] != (found := addresses(tables)):
        raise EngineError(
            f"{path}: was built for other tables: sha256 of all addresses is {found}, want {stated[ADDRESSES]}"
        )


def _read(path: Path) -> dict[str, Any]:
    content = read_bytes(path)
    try:
        begin = content.index(MARK.encode()) + len(MARK)
        stated = json.loads(content[begin : content.index(0, begin)])
    except ValueError as error:
        raise EngineError(f"{path}: doesn't say what it was built for; compile the model again") from error
    if not isinstance(stated, dict):
        raise EngineError(f"{path}: doesn't say what it was built for; compile the model again")
    return stated
