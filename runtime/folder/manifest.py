"""The manifest of an engine folder, `engine.json`: what the engine is and the hashes of its files.

The compiler writes it with `write_manifest`. `read_manifest` checks that the folder is whole and unchanged;
`runnable.py` checks that this machine can run it. What is wrong is said in one line that names the file, the value
found and the value expected.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.folder.files import CHUNK_BYTES, check_hash, check_size, file_entry, inner_path
from tilecompile.runtime.folder.schema import RESOURCES, SCHEMA
from tilecompile.runtime.format import FORMAT_VERSION, NONE, SAMPLING_INPUTS, TABLES, ProgramTable, program_table
from tilecompile.runtime.validate import mismatch
from tilecompile.runtime.version import __version__

NAME = "engine.json"
KERNEL = "kernel.so"
CUBIN = "kernel.cubin"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Manifest:
    """An engine folder whose engine.json was read and checked; `data` is its content (see `SCHEMA`)."""

    folder: Path
    data: dict[str, Any]
    identity: tuple[int, int] | None = None
    """Device and inode of the folder that was read."""

    @property
    def path(self) -> Path:
        """Path of engine.json."""
        return self.folder / NAME

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self.data["vocab_size"])

    @property
    def max_seq_len(self) -> int:
        """Positions that the caches hold."""
        return int(self.data["max_seq_len"])

    @property
    def workers(self) -> int:
        """Workers over all devices."""
        return int(self.data["workers"])

    @property
    def devices(self) -> int:
        """Number of devices."""
        return int(self.data["devices"])

    @property
    def eos_token_ids(self) -> list[int]:
        """Ids that end a generation."""
        return list(self.data["eos_token_ids"])

    @property
    def samples(self) -> bool:
        """Whether the kernel takes a request's parameters for sampling; one that doesn't decodes greedily."""
        return all(name in self.data["io"] for name in SAMPLING_INPUTS)

    @property
    def sampling_defaults(self) -> dict[str, float]:
        """What the model's makers recommend for sampling, by the names of `SamplingParams`; some or none of them."""
        return dict(self.data["sampling"])

    @property
    def pools(self) -> list[dict[str, Any]]:
        """Weight pools by device: device, file (or None) and bytes."""
        return sorted(self.data["weights"]["pools"], key=lambda pool: int(pool["device"]))

    @property
    def arenas(self) -> list[dict[str, int]]:
        """Bytes of the activation, cache and io arenas, by device."""
        return sorted(self.data["arenas"], key=lambda arena: int(arena["device"]))

    @property
    def kernel(self) -> str | None:
        """Name of the kernel's file: for CPUs or GPUs, or None in an engine without one."""
        return next((name for name in (KERNEL, CUBIN) if name in self.data["files"]), None)

    @property
    def has_kernel(self) -> bool:
        """Whether the engine has a kernel."""
        return self.kernel is not None

    @property
    def has_weights(self) -> bool:
        """Whether the engine has its weights."""
        return all(pool["file"] is not None for pool in self.pools)

    @property
    def tokenizer(self) -> Path | None:
        """Path of the tokenizer, or None in an engine without one."""
        return self.folder / TOKENIZER if TOKENIZER in self.data["files"] else None

    def file(self, name: str) -> Path:
        """Path of one of the engine's files."""
        return inner_path(self.folder, name)

    def table(self, name: str) -> Path:
        """Path of a table."""
        return self.file(f"tables/{name}.npy")

    @property
    def programs(self) -> ProgramTable:
        """The table of the step programs, as kernels take it."""
        return program_table(self.data["programs"], self.data["first_program"])

    def program(self, name: str = "decode") -> dict[str, Any]:
        """What is stated about a step program; EngineError if there is none of that name."""
        for program in self.data["programs"]:
            if program["name"] == name:
                return dict(program)
        raise EngineError(f"{self.path}: has no program {name!r}, has {[p['name'] for p in self.data['programs']]}")

    def memory(self, threads: int) -> int:
        """Bytes that loading takes: weight pools, arenas and the threads' scratch memory."""
        arenas = sum(arena[key] for arena in self.arenas for key in ("activation", "cache", "io"))
        return arenas + sum(int(pool["bytes"]) for pool in self.pools) + threads * int(self.data["scratch_bytes"])


def manifest_sha256(data: Mapping[str, Any]) -> str:
    """sha256 of the manifest's canonical JSON, without the key that holds the hash itself."""
    rest = {key: value for key, value in data.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_manifest(folder: Path, data: Mapping[str, Any], chunk_bytes: int = CHUNK_BYTES) -> Manifest:
    """Writes engine.json and returns it.

    Fills in `format`, `tilecompile`, `files` and `manifest_sha256`. Every file in the folder gets an entry in `files`;
    entries that `data["files"]` already has (for weight files, from a `ChunkHasher` that saw the bytes pass) are kept,
    the other files are hashed here, those under `weights/` in chunks. EngineError if a key is missing or has a wrong
    type.
    """
    entries = dict(data.get("files", {}))
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != NAME and name not in entries:
            entries[name] = file_entry(path, name.startswith("weights/"), chunk_bytes)
    filled = {**data, "format": FORMAT_VERSION, "tilecompile": __version__, "files": entries}
    filled = json.loads(json.dumps(filled))
    filled["manifest_sha256"] = manifest_sha256(filled)
    manifest = Manifest(folder, filled)
    _check_content(manifest)
    manifest.path.write_text(json.dumps(filled, indent=1) + "\n")
    return manifest


def read_manifest(folder: str | Path, check_weights: bool = False) -> Manifest:
    """Reads engine.json and checks the folder: version, keys, sizes of all files, hashes of all but the weights.

    With `check_weights` the weight files are hashed too. Doesn't ask whether this machine can run the engine.
    """
    folder = Path(folder)
    path = folder / NAME
    try:
        if not folder.is_dir():
            found = "a file" if folder.exists() else "not there"
            raise EngineError(f"{folder}: is {found}, want an engine folder{_replaced(folder)}")
        if not inner_path(folder, NAME).is_file():
            raise EngineError(f"{folder}: has no {NAME}, want an engine folder (made by tilecompile compile)")
        identity = _identity(folder)
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise EngineError(f"{path}: can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise EngineError(f"{path}: the content is a {type(data).__name__}, want an object")
    if data.get("format") != FORMAT_VERSION or isinstance(data["format"], bool):
        raise EngineError(
            f"{path}: format version is {json.dumps(data.get('format'))[:80]}, want {FORMAT_VERSION}; "
            "compile the model again"
        )
    manifest = Manifest(folder, data, identity)
    try:
        _check_content(manifest)
        found = manifest_sha256(data)
    except RecursionError as error:
        raise EngineError(f"{path}: is nested too deeply") from error
    if found != data["manifest_sha256"]:
        raise EngineError(f"{path}: sha256 of the content is {found}, manifest_sha256 says {data['manifest_sha256']}")
    weights = {pool["file"] for pool in manifest.pools}
    for name, entry in data["files"].items():
        check_size(inner_path(folder, name), entry["bytes"])
    for name, entry in data["files"].items():
        if check_weights or name not in weights:
            check_hash(inner_path(folder, name), entry)
    return manifest


def _replaced(folder: Path) -> str:
    """Says where the engine is that an interrupted compilation was replacing (see engine/folder.py), if any."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.old-*"):
        return f"; the compilation that was replacing it was ended, and it is in {path}: rename it or compile again"
    return ""


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def check_same(manifest: Manifest) -> None:
    """EngineError if the folder is no longer the one that was read: a compilation may replace it meanwhile."""
    try:
        found = _identity(manifest.folder)
    except OSError as error:
        raise EngineError(f"{manifest.folder}: went away while it was read: {error.strerror or error}") from error
    if found != manifest.identity:
        raise EngineError(f"{manifest.folder}: was replaced while it was read; load it again")


def _check_content(manifest: Manifest) -> None:
    """Keys and types, and what must agree within engine.json."""
    data = manifest.data
    found = mismatch(data, SCHEMA)
    if found:
        raise EngineError(f"{manifest.path}: {found}")
    if CUBIN in data["files"] and (found := mismatch(data.get("resources"), RESOURCES, "resources")):
        raise EngineError(f"{manifest.path}: {found}")
    if not data["programs"]:
        raise EngineError(f"{manifest.path}: programs is empty, want at least one")
    if data["scratch_bytes"] >= NONE:
        raise EngineError(f"{manifest.path}: scratch_bytes is {data['scratch_bytes']}, want less than {NONE}")
    try:
        program_table(data["programs"], data["first_program"])
    except ValueError as error:
        raise EngineError(f"{manifest.path}: {error}") from error
    for token in data["eos_token_ids"]:
        if token >> 31:
            raise EngineError(f"{manifest.path}: eos_token_ids has {token}, want less than {1 << 31}")
    for key in ("devices", "workers", "max_seq_len", "vocab_size"):
        if not 1 <= data[key] < NONE:
            raise EngineError(f"{manifest.path}: {key} is {data[key]}, want at least 1 and less than {NONE}")
    for key, items in (("weights.pools", manifest.pools), ("arenas", manifest.arenas)):
        devices = [item["device"] for item in items]
        if len(devices) != manifest.devices or devices != list(range(len(devices))):
            raise EngineError(f"{manifest.path}: {key} name devices {devices}, want one each of {manifest.devices}")
    for name, entry in data["files"].items():
        if "sha256" not in entry and entry["chunk_bytes"] < 1:
            raise EngineError(f'{manifest.path}: files["{name}"].chunk_bytes is 0, want at least 1')
    files = {f"tables/{name}.npy": None for name in TABLES}
    required = files | {pool["file"]: pool["bytes"] for pool in manifest.pools if pool["file"] is not None}
    for name, size in required.items():
        if name not in data["files"]:
            raise EngineError(f"{manifest.path}: files has no entry for {name}, which the engine needs")
        if size is not None and data["files"][name]["bytes"] != size:
            raise EngineError(f"{manifest.path}: {name} has {data['files'][name]['bytes']} bytes, its pool {size}")
