"""Parameters from a checkpoint folder: windows of the tensors in safetensors files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tilecompile.models.registry import read_config_file, spec_of
from tilecompile.models.spec import ModelConfig
from tilecompile.models.weights import Weights
from tilecompile.runtime.errors import InputError


def _listed(items: Iterable[str], limit: int = 10) -> str:
    """Names in one line, cut after `limit`."""
    names = list(items)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count} tensors"


class Checkpoint(Weights[ModelConfig]):
    """A checkpoint folder: config.json, and model.safetensors or its shards with their index.

    All tensors that the model needs are checked when the folder is opened; one InputError names all faults.
    """

    DTYPES = ("F32", "BF16", "F16")

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            found = "is a file" if self.folder.exists() else "doesn't exist"
            raise InputError(f"{folder}: {found}, want a folder with config.json and model.safetensors")
        if not (self.folder / "config.json").is_file():
            raise InputError(f"{folder}: no config.json")
        config = read_config_file(self.folder / "config.json")
        self._files: dict[str, Any] = {}
        self._shards = self._locate()
        config, notes = spec_of(config).held(config, self._shards.keys())
        super().__init__(config, str(folder), tuple(f"{folder}: {note}" for note in notes))
        self._check()

    def _open(self, shard: str) -> Any:
        if shard not in self._files:
            try:
                self._files[shard] = safe_open(self.folder / shard, framework="pt")
            except (SafetensorError, OSError) as error:
                raise InputError(f"{self.folder / shard}: not a readable safetensors file ({error})") from error
        return self._files[shard]

    def _locate(self) -> dict[str, str]:
        """The file of each tensor."""
        single, index = "model.safetensors", self.folder / "model.safetensors.index.json"
        if (self.folder / single).is_file():
            return dict.fromkeys(self._open(single).keys(), single)
        if not index.is_file():
            raise InputError(f"{self.folder}: no {single} and no {index.name} (other formats are not read)")
        try:
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{index}: not a safetensors index ({type(error).__name__}: {error})") from error
        if not isinstance(shards, dict):
            raise InputError(f"{index}: weight_map is a {type(shards).__name__}, want an object")
        for name, file in shards.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise InputError(f"{index}: weight_map has {file!r} for {name}, want the name of a file in the folder")
        absent = [name for name in sorted(set(shards.values())) if not os.path.isfile(self.folder / name)]
        if absent:
            raise InputError(f"{index}: names files that don't exist: {_listed(absent)}")
        return shards

    def _check(self) -> None:
        """Compares every needed tensor with the table."""
        needed = {w.tensor: w.shape for p in self.parameters.values() for w in p.windows}
        held = {shard: set(self._open(shard).keys()) for shard in sorted(set(self._shards.values()))}
        missing, lost, shapes, dtypes = [], [], [], []
        for name, shape in needed.items():
            if name not in self._shards:
                missing.append(name)
            elif name not in held[self._shards[name]]:
                lost.append(f"{name} ({self._shards[name]})")
            else:
                header = self._open(self._shards[name]).get_slice(name)
                if tuple(header.get_shape()) != shape:
                    shapes.append(f"{name} ({list(header.get_shape())}, want {list(shape)})")
                if header.get_dtype() not in self.DTYPES:
                    dtypes.append(f"{name} ({header.get_dtype()})")
        faults = []
        if missing:
            faults.append(f"{_tensors(len(missing))} missing: {_listed(missing)}")
        if lost:
            faults.append(f"{_tensors(len(lost))} not in the file that the index names: {_listed(lost)}")
        if shapes:
            faults.append(f"{_tensors(len(shapes))} of another shape: {_listed(shapes)}")
        if dtypes:
            fp8 = "; FP8 checkpoints are not supported yet" if any("(F8" in text for text in dtypes) else ""
            supported = f"want {', '.join(self.DTYPES)}{fp8}"
            faults.append(f"{_tensors(len(dtypes))} of an unsupported dtype: {_listed(dtypes)}, {supported}")
        if faults:
            raise InputError(f"{self.folder}: {'; '.join(faults)}")

    def _window(self, tensor: str, shape: tuple[int, ...], rows: slice, cols: slice) -> Tensor:
        stored = self._open(self._shards[tensor]).get_slice(tensor)
        try:
            part: Tensor = stored[cols][None] if len(shape) == 1 else stored[rows, cols]
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.folder / self._shards[tensor]}: can't read {tensor} ({error})") from error
        return part
