"""What a step chose: positions that attention reads, experts and their weights, for every position of a text.

They don't depend on placement or target, so those of one engine can be replayed in another of the same model: see
`replay.py`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.errors import InputError

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

FIELDS = ("positions", "experts", "weights")
"""The parts of Selections, each a table by layer."""


@dataclass(frozen=True)
class Selections:
    """The choices of `n` successive positions, the first of them `start`, by number of the layer.

    `positions`: i32 [n, index_topk], ascending, -1 in the unused entries at the end; layers that share a selection are
    not in it. `experts`: i32 [n, experts a token], in the order of the router. `weights`: f32, of the same shape.
    """

    start: int
    positions: Mapping[int, Ints]
    experts: Mapping[int, Ints]
    weights: Mapping[int, Floats]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All tables as named arrays: `start`, `positions.3` and so on."""
        named: dict[str, npt.NDArray[Any]] = {"start": np.array(self.start)}
        for field in FIELDS:
            named |= {f"{field}.{layer}": table for layer, table in getattr(self, field).items()}
        return named

    @staticmethod
    def of(arrays: Mapping[str, npt.NDArray[Any]]) -> Selections:
        """The inverse of `arrays`. InputError for a name that `arrays` doesn't have, or without a start."""
        found: dict[str, dict[int, npt.NDArray[Any]]] = {field: {} for field in FIELDS}
        start = arrays.get("start")
        if start is None or start.shape or start.dtype.kind not in "iu":
            raise InputError("selections have no start, want a whole number")
        for name in arrays:
            field, _, layer = name.partition(".")
            if name == "start":
                continue
            if field not in found or not layer.isdecimal():
                raise InputError(f"selections have {name!r}, want start and names like {', '.join(FIELDS)} with .LAYER")
            found[field][int(layer)] = arrays[name]
        return Selections(int(start), found["positions"], found["experts"], found["weights"])

    def save(self, path: str | Path) -> None:
        """Writes an .npz file, compressed."""
        with Path(path).open("wb") as file:
            np.savez_compressed(file, **self.arrays())  # type: ignore[arg-type]

    @staticmethod
    def load(path: str | Path) -> Selections:
        """Reads what `save` wrote. InputError that names the file if it can't be read."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return Selections.of(dict(file))
        except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"{path}: is no file of selections: {why}") from error
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
