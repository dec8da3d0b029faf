"""The folder that `prepare.py` makes and `run.py` takes: index.json, and one compressed archive of all else."""

from __future__ import annotations

import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from tilecompile.errors import InputError
from tilecompile.runtime.format import FORMAT_VERSION

INDEX, ARCHIVE = "index.json", "files.tar.xz"
LIMIT = 60 << 20
"""Bytes that the folder may take."""


class Folder:
    """What was prepared: `index` (see prepare.py), and the unpacked files."""

    def __init__(self, index: dict[str, Any], files: Path) -> None:
        self.index, self.files = index, files

    def path(self, name: str) -> Path:
        """Path of a file or folder of the archive."""
        return self.files / name

    def bytes(self, name: str) -> bytes:
        """A file's content."""
        return self.path(name).read_bytes()


def write(folder: Path, index: dict[str, Any], files: Path) -> int:
    """Packs `files` and writes the index beside them; returns the bytes of both. InputError if that is too much."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / ARCHIVE
    with tarfile.open(archive, "w:xz", preset=6) as tar:
        for path in sorted(files.rglob("*")):
            if path.is_file():
                tar.add(path, str(path.relative_to(files)))
    (folder / INDEX).write_text(json.dumps({"format": FORMAT_VERSION, **index}, indent=1) + "\n")
    size = archive.stat().st_size + (folder / INDEX).stat().st_size
    if size > LIMIT:
        raise InputError(f"{folder}: takes {size} bytes, want at most {LIMIT}")
    return size


def read_index(folder: Path) -> dict[str, Any]:
    """The index. InputError for a folder that isn't whole, or was made by another version."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text())
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{path}: {why}; make it with tests/gpu/prepare.py -o FOLDER") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    found = index.get("format") if isinstance(index, dict) else None
    if found != FORMAT_VERSION:
        raise InputError(f"{path}: format is {found}, want {FORMAT_VERSION}; prepare it again")
    return dict(index)


def unpack(folder: Path, into: Path) -> Folder:
    """Unpacks the archive. InputError as `read_index`, and for an archive that can't be read."""
    index = read_index(folder)
    try:
        with tarfile.open(folder / ARCHIVE) as tar:
            tar.extractall(into, filter="data")
    except (OSError, tarfile.TarError, EOFError) as error:
        raise InputError(f"{folder / ARCHIVE}: can't be unpacked: {error}") from error
    return Folder(index, into)


def temporary() -> tempfile.TemporaryDirectory[str]:
    """A folder for what is unpacked."""
    return tempfile.TemporaryDirectory(prefix="tilecompile-gpu-")
