"""Files of an engine folder: paths that stay inside it, sizes, and sha256 of whole files or of chunks."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from tilecompile.runtime.errors import EngineError

CHUNK_BYTES = 64 << 20
"""Bytes of one hashed chunk of a weight file."""


class ChunkHasher:
    """Hashes a weight file while it is being written: `update` with the bytes in order, then `entry`."""

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.chunk_bytes = chunk_bytes
        self.bytes = 0
        self._chunks: list[str] = []
        self._hash = hashlib.sha256()

    def update(self, data: Any) -> None:
        """Takes the next bytes: any C-contiguous buffer (bytes, memoryview, numpy array)."""
        view = memoryview(data).cast("B")
        while len(view):
            room = self.chunk_bytes - self.bytes % self.chunk_bytes
            part, view = view[:room], view[room:]
            self._hash.update(part)
            self.bytes += len(part)
            if self.bytes % self.chunk_bytes == 0:
                self._finish()

    def _finish(self) -> None:
        self._chunks.append(self._hash.hexdigest())
        self._hash = hashlib.sha256()

    def entry(self) -> dict[str, Any]:
        """The file's entry in the manifest; call once, at the end."""
        if self.bytes % self.chunk_bytes:
            self._finish()
        return {"bytes": self.bytes, "chunk_bytes": self.chunk_bytes, "chunks": self._chunks}


def read_bytes(path: Path, size: int = -1) -> bytes:
    """The content of a file, or its first `size` bytes. EngineError if it can't be read."""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise EngineError(f"{path}: can't be read: {error.strerror or error}") from error


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_entry(path: Path, chunked: bool = False, chunk_bytes: int = CHUNK_BYTES) -> dict[str, Any]:
    """A file's entry in the manifest: its size and its sha256, in chunks for weight files."""
    if not chunked:
        return {"bytes": path.stat().st_size, "sha256": sha256(path)}
    hasher = ChunkHasher(chunk_bytes)
    with path.open("rb") as file:
        while data := file.read(chunk_bytes):
            hasher.update(data)
    return hasher.entry()


def inner_path(folder: Path, name: str) -> Path:
    """The path of a file of the engine. EngineError where the name or a link leads out of the folder."""
    pure = PurePosixPath(name)
    if not name or "\0" in name or "\\" in name or pure.is_absolute() or ".." in pure.parts:
        raise EngineError(f"{folder}/engine.json: file name {name!r} is not a path inside the engine folder")
    path = folder / pure
    try:
        target = path.resolve()
        inside = target.is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, no character of the file system
        raise EngineError(f"{folder}/engine.json: file name {name[:80]!r} can't be looked up: {error}") from error
    if not inside:
        raise EngineError(f"{path}: is a link to {target}, want a file inside the engine folder")
    return path


def check_size(path: Path, size: int) -> None:
    """EngineError unless the path is a regular file of `size` bytes."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise EngineError(f"{path}: missing file, want {size} bytes") from error
    except OSError as error:
        raise EngineError(f"{path}: can't be read: {error.strerror or error}") from error
    if not stat.S_ISREG(found.st_mode):
        raise EngineError(f"{path}: is not a file, want a file of {size} bytes")
    if found.st_size != size:
        raise EngineError(f"{path}: size is {found.st_size} bytes, want {size}")


def check_hash(path: Path, entry: Mapping[str, Any]) -> None:
    """EngineError unless the file's content has the hashes of its entry; chunks are hashed in parallel."""
    try:
        if "sha256" in entry:
            found = sha256(path)
            if found != entry["sha256"]:
                raise EngineError(f"{path}: sha256 is {found}, want {entry['sha256']}")
            return
        size, expected = entry["chunk_bytes"], entry["chunks"]
        if len(expected) != -(-entry["bytes"] // size):
            raise EngineError(
                f"{path}: engine.json has {len(expected)} chunk hashes, want {-(-entry['bytes'] // size)}"
            )

        def chunk_hash(index: int) -> str:
            with path.open("rb") as file:
                file.seek(index * size)
                return hashlib.sha256(file.read(min(size, entry["bytes"]))).hexdigest()

        with ThreadPoolExecutor(4) as pool:
            for index, found in enumerate(pool.map(chunk_hash, range(len(expected)))):
                if found != expected[index]:
                    raise EngineError(
                        f"{path}: sha256 of chunk {index} (bytes {index * size} to "
                        f"{min((index + 1) * size, entry['bytes'])}) is {found}, want {expected[index]}"
                    )
    except OSError as error:
        raise EngineError(f"{path}: can't be read: {error.strerror or error}") from error
