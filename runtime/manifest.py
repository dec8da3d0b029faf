"""The manifest of an engine folder, `engine.json`: what the engine is and the hashes of its files.

The compiler writes it with `write_manifest`. `read_manifest` checks that the folder is whole and unchanged;
`runnable.py` checks that this machine can run it. What is wrong is said in one line that names the file, the value
found and the value wanted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilecompile import __version__
from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.files import CHUNK_BYTES, check_hash, check_size, file_entry, inner_path
from tilecompile.runtime.format import FORMAT_VERSION, NONE, TABLES

NAME = "engine.json"
KERNEL = "kernel.so"
TOKENIZER = "tokenizer.json"


class MapOf:
    """Schema of a JSON object with any keys, whose values all have one schema."""

    def __init__(self, values: Any) -> None:
        self.values = values


SCHEMA: dict[str, Any] = {
    "format": int,
    "tilecompile": str,
    "model": {"name": str, "architecture": str, "config": dict},
    "target": {"name": str, "isa": str, "features": [str]},
    "machine": str,
    "devices": int,
    "workers": int,
    "placement": str,
    "max_seq_len": int,
    "vocab_size": int,
    "eos_token_ids": [int],
    "weights": {"dtype": str, "source": str, "pools": [{"device": int, "file": (str, None), "bytes": int}]},
    "cache": str,
    "arenas": [{"device": int, "activation": int, "cache": int, "io": int}],
    "programs": [
        {
            "name": str,
            "tokens": int,
            "tasks": int,
            "events": int,
            "edges": int,
            "bytes_per_step": int,
            "ops": MapOf(int),
        }
    ],
    "kinds": [str],
    "operators": [str],
    "io": {"ids": int, "position": int, "next": int, "logits": int},
    "scratch_bytes": int,
    "compile_seconds": float,
    "files": MapOf(({"bytes": int, "sha256": str}, {"bytes": int, "chunk_bytes": int, "chunks": [str]})),
    "manifest_sha256": str,
}
"""Keys of engine.json. int: a whole number from 0; float: any number; tuple: one of these; other keys are kept."""

_NAMES = {int: "a whole number from 0", float: "a number", str: "a string", dict: "an object", None: "null"}


def _describe(schema: Any) -> str:
    if isinstance(schema, tuple):
        return " or ".join(_describe(s) for s in schema)
    if isinstance(schema, dict):
        return f"an object with {', '.join(schema)}"
    if isinstance(schema, MapOf):
        return "an object"
    return "a list" if isinstance(schema, list) else _NAMES[schema]


def _mismatch(value: Any, schema: Any, path: str) -> str | None:
    """The first place where a value doesn't follow a schema, as "KEY is VALUE, want …", or None."""
    wrong = f"{path or 'the content'} is {json.dumps(value)[:80]}, want {_describe(schema)}"
    if isinstance(schema, tuple):
        return wrong if all(_mismatch(value, s, path) for s in schema) else None
    if isinstance(schema, list):
        if not isinstance(value, list):
            return wrong
        inner = [(item, schema[0], f"{path}[{i}]") for i, item in enumerate(value)]
    elif isinstance(schema, MapOf):
        if not isinstance(value, dict):
            return wrong
        inner = [(item, schema.values, f"{path}[{json.dumps(key)}]") for key, item in value.items()]
    elif isinstance(schema, dict):
        if not isinstance(value, dict):
            return wrong
        for key in schema:
            if key not in value:
                return f"{f'{path}.' if path else ''}{key} is missing, want {_describe(schema[key])}"
        inner = [(value[key], schema[key], f"{path}.{key}".lstrip(".")) for key in schema]
    elif schema is int:
        return None if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else wrong
    elif schema is float:
        return None if isinstance(value, (int, float)) and not isinstance(value, bool) else wrong
    else:
        return None if isinstance(value, type(None) if schema is None else schema) else wrong
    return next((found for args in inner if (found := _mismatch(*args))), None)


@dataclass(frozen=True)
class Manifest:
    """An engine folder whose engine.json was read and checked; `data` is its content (see `SCHEMA`)."""

    folder: Path
    data: dict[str, Any]

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
    def pools(self) -> list[dict[str, Any]]:
        """Weight pools by device: device, file (or None) and bytes."""
        return sorted(self.data["weights"]["pools"], key=lambda pool: int(pool["device"]))

    @property
    def arenas(self) -> list[dict[str, int]]:
        """Bytes of the activation, cache and io arenas, by device."""
        return sorted(self.data["arenas"], key=lambda arena: int(arena["device"]))

    @property
    def has_kernel(self) -> bool:
        """Whether the engine has a kernel that can be loaded."""
        return KERNEL in self.data["files"]

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
    if not folder.is_dir():
        raise EngineError(f"{folder}: is {'a file' if folder.exists() else 'not there'}, want an engine folder")
    if not path.is_file():
        raise EngineError(f"{folder}: has no {NAME}, want an engine folder (made by tilecompile compile)")
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise EngineError(f"{path}: can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise EngineError(f"{path}: the content is a {type(data).__name__}, want an object")
    if data.get("format") != FORMAT_VERSION or isinstance(data["format"], bool):
        raise EngineError(
            f"{path}: format version is {json.dumps(data.get('format'))}, want {FORMAT_VERSION}; "
            "compile the model again"
        )
    manifest = Manifest(folder, data)
    _check_content(manifest)
    found = manifest_sha256(data)
    if found != data["manifest_sha256"]:
        raise EngineError(f"{path}: sha256 of the content is {found}, manifest_sha256 says {data['manifest_sha256']}")
    weights = {pool["file"] for pool in manifest.pools}
    for name, entry in data["files"].items():
        check_size(inner_path(folder, name), entry["bytes"])
    for name, entry in data["files"].items():
        if check_weights or name not in weights:
            check_hash(inner_path(folder, name), entry)
    return manifest


def _check_content(manifest: Manifest) -> None:
    """Keys and types, and what must agree within engine.json."""
    data = manifest.data
    found = _mismatch(data, SCHEMA, "")
    if found:
        raise EngineError(f"{manifest.path}: {found}")
    for key in ("devices", "workers", "max_seq_len", "vocab_size"):
        if not 1 <= data[key] < NONE:
            raise EngineError(f"{manifest.path}: {key} is {data[key]}, want at least 1 and less than {NONE}")
    for key, items in (("weights.pools", manifest.pools), ("arenas", manifest.arenas)):
        devices = [item["device"] for item in items]
        if devices != list(range(manifest.devices)):
            raise EngineError(f"{manifest.path}: {key} name devices {devices}, want one each of {manifest.devices}")
    for name, entry in data["files"].items():
        if entry.get("chunk_bytes", 1) < 1:
            raise EngineError(f'{manifest.path}: files["{name}"].chunk_bytes is 0, want at least 1')
    files = {f"tables/{name}.npy": None for name in TABLES}
    wanted = files | {pool["file"]: pool["bytes"] for pool in manifest.pools if pool["file"] is not None}
    for name, size in wanted.items():
        if name not in data["files"]:
            raise EngineError(f"{manifest.path}: files has no entry for {name}, which the engine needs")
        if size is not None and data["files"][name]["bytes"] != size:
            raise EngineError(f"{manifest.path}: {name} has {data['files'][name]['bytes']} bytes, its pool {size}")
