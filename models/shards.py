"""The safetensors files of a checkpoint folder: one, or shards with their index."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tilecompile.models.files import not_content, read_object
from tilecompile.models.listed import listed
from tilecompile.runtime.errors import InputError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LONGEST = 100_000_000
"""Bytes that a header has at most."""


class Shards:
    """The tensors of a folder. `files` has the file of each, `lost` those that aren't in the file that the index
    names."""

    def __init__(self, folder: Path) -> None:
        """Opens every file. InputError for a folder without weights, and for files that can't be read."""
        self.folder = folder
        self._opened: dict[str, Any] = {}
        self.files = self._locate()
        held = {file: set(self._open(file).keys()) for file in sorted(set(self.files.values()))}
        self.lost = {name for name, file in self.files.items() if name not in held[file]}

    def _open(self, file: str) -> Any:
        if file not in self._opened:
            path = self.folder / file
            try:
                if wrong := not_content(path):
                    raise InputError(f"{path}: {wrong}")
                self._opened[file] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path}: {_cut(path) or f'not a readable safetensors file ({error})'}") from error
        return self._opened[file]

    def _locate(self) -> dict[str, str]:
        """The file of each tensor."""
        index = self.folder / INDEX
        if (self.folder / SINGLE).is_file():
            return dict.fromkeys(self._open(SINGLE).keys(), SINGLE)
        if not index.is_file():
            raise InputError(f"{self.folder}: no {SINGLE} and no {INDEX} (other formats are not read)")
        shards = read_object(index).get("weight_map")
        if not isinstance(shards, dict):
            raise InputError(f"{index}: weight_map is a {type(shards).__name__}, want an object")
        for name, file in shards.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise InputError(f"{index}: weight_map has {file!r} for {name}, want the name of a file in the folder")
        absent = [file for file in sorted(set(shards.values())) if not os.path.isfile(self.folder / file)]
        if absent:
            raise InputError(f"{index}: names files that don't exist: {listed(absent)}")
        return shards

    def header(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Type, as safetensors names it, and shape of a tensor that isn't lost."""
        stored = self._open(self.files[name]).get_slice(name)
        return stored.get_dtype(), tuple(stored.get_shape())

    def read(self, name: str, *window: int | slice) -> Tensor:
        """A window of a tensor, as it is stored. InputError if it can't be read."""
        file = self._opened[self.files[name]]
        try:
            part: Tensor = file.get_slice(name)[window] if window else file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.folder / self.files[name]}: can't read {name} ({error})") from error
        return part


def _cut(path: Path) -> str | None:
    """What is known of a file that ends before its content does, in words; None if that isn't what is wrong."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            begin = 8 + int.from_bytes(file.read(8), "little")
            if size < begin < LONGEST:
                return f"is incomplete: {size} bytes, its header asks for {begin} or more"
            header = json.loads(file.read(begin - 8))
        want = begin + max(tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError):
        return None
    return f"is incomplete: {size} bytes, its header asks for {want}" if size < want else None
