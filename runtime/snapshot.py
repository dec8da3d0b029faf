"""Snapshots: what an engine's caches hold, in a file, for a later process of the same engine.

The file is a head of 64 bytes, the ids as i32, the valid rows of each cache in the order of `cache_buffers`, and a
description in JSON with the sizes and hashes of all that; the head has the hash of the description. Nothing in it is
ever executed. It is written beside its place, and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tilecompile.runtime.backend import Backend
from tilecompile.runtime.cached import Cached
from tilecompile.runtime.errors import InputError
from tilecompile.runtime.folder.caches import CacheBuffer, cache_buffers
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.folder.tables import Tables
from tilecompile.runtime.validate import Table, mismatch

ARENA = "cache"

MAGIC, VERSION = b"tilecompilecache", 1
HEAD = struct.Struct("<16sIIQ32s")
"""Magic, version, bytes of the description, its offset, its sha256."""

CHUNK = 16 << 20
"""Bytes that are read or written at once."""

DESCRIPTION = Table(
    {
        "engine": str,
        "ids": int,
        "drafts": int,
        "sha256": str,
        "caches": [Table({"device": int, "bytes": int, "sha256": str}, ("device", "bytes", "sha256"))],
    },
    ("engine", "ids", "drafts", "sha256", "caches"),
)


def identity(manifest: Manifest, backend: Backend) -> str:
    """What makes an engine the same: the hashes of its tables, its kernel and its weights, in one."""
    files = {
        path: entry
        for path, entry in manifest.data["files"].items()
        if path == manifest.kernel or path.startswith(("tables/", "weights/"))
    }
    about = json.dumps({"files": files, "drawn": backend.drawn}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(about.encode()).hexdigest()


def save(path: str | Path, manifest: Manifest, tables: Tables, backend: Backend, cached: Cached) -> int:
    """Writes what the caches hold, and returns how many positions that is. The engine must be held.

    InputError if the file can't be written; then what was there before is there still.
    """
    path = Path(path).absolute()
    if not cached.own:
        raise InputError(f"{path}: there is nothing to save: the caches hold no ids")
    ids, drafts = cached.ids[: cached.own], min(cached.drafts, max(0, cached.own - 1))
    new = path.parent / f".{path.name}.partial-{os.getpid()}"
    try:
        with new.open("wb") as file:
            file.write(bytes(HEAD.size))
            file.write(ids.tobytes())
            caches = []
            for cache in cache_buffers(manifest, tables):
                size, found = cache.bytes_of(drafts if cache.drafts else len(ids)), hashlib.sha256()
                for data in _read(backend, cache, size):
                    found.update(data)
                    file.write(data)
                caches.append({"device": cache.device, "bytes": size, "sha256": found.hexdigest()})
            about = {
                "engine": identity(manifest, backend),
                "ids": len(ids),
                "drafts": drafts,
                "sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
                "caches": caches,
            }
            text, offset = json.dumps(about).encode(), file.tell()
            file.write(text)
            file.seek(0)
            file.write(HEAD.pack(MAGIC, VERSION, len(text), offset, hashlib.sha256(text).digest()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        raise InputError(f"{path}: can't be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            new.unlink()
    return len(ids)


def _read(backend: Backend, cache: CacheBuffer, size: int) -> Iterator[Any]:
    for begin in range(0, size, CHUNK):
        end = min(begin + CHUNK, size)
        yield backend.read(cache.device, ARENA, cache.begin + begin, cache.begin + end).data


class Snapshot:
    """A snapshot for an engine, checked: description, hashes and sizes. InputError in one line for any other file."""

    def __init__(self, path: str | Path, manifest: Manifest, tables: Tables, backend: Backend) -> None:
        self.path, self._backend = Path(path), backend
        self._caches = cache_buffers(manifest, tables)
        try:
            with self.path.open("rb") as file:
                about = self._description(file)
                self._check(about, manifest, identity(manifest, backend))
                self.cached = self._cached(file, about, manifest.vocab_size)
                for i, entry in enumerate(about["caches"]):
                    found = hashlib.sha256()
                    for data in self._chunks(file, entry["bytes"]):
                        found.update(data)
                    self._same(f"sha256 of cache {i}", found.hexdigest(), entry["sha256"])
        except OSError as error:
            raise InputError(f"{self.path}: can't be read: {error.strerror or error}") from error
        self._sizes = [int(entry["bytes"]) for entry in about["caches"]]

    def _description(self, file: BinaryIO) -> dict[str, Any]:
        """What the file states about itself; the head is read and checked."""
        head = file.read(HEAD.size)
        if len(head) < HEAD.size or not head.startswith(MAGIC):
            raise InputError(f"{self.path}: is not a snapshot of caches (made by save_cache)")
        _, version, size, offset, digest = HEAD.unpack(head)
        if version != VERSION:
            raise InputError(f"{self.path}: the snapshot's version is {version}, want {VERSION}")
        have = os.fstat(file.fileno()).st_size
        if have != offset + size:
            raise InputError(f"{self.path}: the snapshot is damaged: it has {have} bytes, want {offset + size}")
        file.seek(offset)
        text = file.read(size)
        self._same("sha256 of the description", hashlib.sha256(text).hexdigest(), digest.hex())
        try:
            about = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.path}: the snapshot is damaged: its description is no JSON") from error
        if found := mismatch(about, DESCRIPTION):
            raise InputError(f"{self.path}: the snapshot is damaged: {found}")
        self._same("offset of the description", offset, HEAD.size + 4 * about["ids"] + _total(about))
        file.seek(HEAD.size)
        return dict(about)

    def _check(self, about: dict[str, Any], manifest: Manifest, engine: str) -> None:
        """InputError unless the description is one of this engine's snapshots."""
        if about["engine"] != engine:
            raise InputError(
                f"{self.path}: is a snapshot of another engine than {manifest.folder}: of {about['engine'][:16]}…, "
                f"want {engine[:16]}…"
            )
        count, drafts = about["ids"], about["drafts"]
        if not 1 <= count <= manifest.max_seq_len:
            raise InputError(f"{self.path}: the snapshot has {count} ids, want 1 to {manifest.max_seq_len}")
        if drafts >= count:
            raise InputError(f"{self.path}: the snapshot has drafts at {drafts} positions, want less than {count}")
        want = [(cache.device, cache.bytes_of(drafts if cache.drafts else count)) for cache in self._caches]
        have = [(entry["device"], entry["bytes"]) for entry in about["caches"]]
        self._same("devices and bytes of its caches", have, want)

    def _cached(self, file: BinaryIO, about: dict[str, Any], vocab: int) -> Cached:
        data = file.read(4 * about["ids"])
        self._same("sha256 of the ids", hashlib.sha256(data).hexdigest(), about["sha256"])
        ids = np.frombuffer(data, np.int32)
        if ids.min() < 0 or ids.max() >= vocab:
            raise InputError(
                f"{self.path}: the snapshot has ids from {ids.min()} to {ids.max()}, want 0 to {vocab - 1}"
            )
        return Cached(ids, len(ids), about["drafts"])

    def _same(self, what: str, have: Any, want: Any) -> None:
        if have != want:
            raise InputError(f"{self.path}: the snapshot is damaged: {what} is {_short(have)}, want {_short(want)}")

    def _chunks(self, file: BinaryIO, size: int) -> Iterator[bytes]:
        while size:
            data = file.read(min(size, CHUNK))
            if not data:
                raise InputError(f"{self.path}: ends before its caches do")
            size -= len(data)
            yield data

    def restore(self) -> None:
        """Writes all to the caches. The engine must be held, and must not rely on them meanwhile."""
        try:
            with self.path.open("rb") as file:
                file.seek(HEAD.size + 4 * len(self.cached.ids))
                for cache, size in zip(self._caches, self._sizes, strict=True):
                    begin = cache.begin
                    for data in self._chunks(file, size):
                        self._backend.write(cache.device, ARENA, begin, np.frombuffer(data, np.uint8))
                        begin += len(data)
        except OSError as error:
            raise InputError(f"{self.path}: can't be read: {error.strerror or error}") from error


def _total(about: dict[str, Any]) -> int:
    return sum(int(entry["bytes"]) for entry in about["caches"])


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 64 else f"{text[:64]}…"
