"""pack: weights to tile pools, one file a device, written from front to back a few tensors at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

import torch

from tilecompile.ops.testing import TORCH_DTYPES
from tilecompile.plan import PlacedBuffer, PlacedTile, Program
from tilecompile.runtime.files import ChunkHasher
from tilecompile.runtime.format import DTYPE_BYTES
from tilecompile.tiles import pack_rows

ROWS_AT_ONCE = 4096
"""Rows of a table that are read together."""


class Source(Protocol):
    """Where weights come from: a checkpoint, or a generator with a seed."""

    def read(self, name: str, matrix: int, row_begin: int, row_end: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows of one matrix of a parameter, [rows, cols]."""

    def full(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A whole parameter."""


def pack(
    program: Program, device: int, dtype_of: dict[str, str], source: Source, path: Path, progress: Callable[[int], None]
) -> dict[str, object]:
    """Writes the pool file of a device; returns its manifest entry (size and chunk hashes).

    `dtype_of` gives the type of each weight; `progress` gets the bytes written so far.
    """
    parts: list[PlacedTile | PlacedBuffer] = [t for t in program.tiles if t.device == device]
    parts += [b for b in program.buffers if b.device == device and b.arena == "weight"]
    hasher = ChunkHasher()
    with path.open("wb") as file:
        for part in sorted(parts, key=lambda p: p.offset):
            _pad(file, hasher, part.offset)
            if isinstance(part, PlacedTile):
                for matrix in range(part.tile.begin, part.tile.end):
                    _write(file, hasher, _matrix(part, matrix, dtype_of, source))
            else:
                _table(file, hasher, part, source)
            progress(hasher.bytes)
        _pad(file, hasher, program.pool_bytes[device])
    return hasher.entry()


def _matrix(placed: PlacedTile, matrix: int, dtype_of: dict[str, str], source: Source) -> torch.Tensor:
    """One matrix's panels of a tile."""
    tile = placed.tile
    dtypes = [TORCH_DTYPES[dtype_of[name]] for name in tile.tensors]
    rows = [
        source.read(name, matrix, tile.row_begin, tile.row_end, dtype)[:, tile.col_begin : tile.col_begin + tile.cols]
        for name, dtype in zip(tile.tensors, dtypes, strict=True)
    ]
    return pack_rows(rows)


def _table(file: BinaryIO, hasher: ChunkHasher, buffer: PlacedBuffer, source: Source) -> None:
    """A constant: small vectors whole, tables a few thousand rows at a time."""
    tensor = buffer.tensor
    dtype = TORCH_DTYPES[tensor.dtype]
    if tensor.rows * tensor.cols * DTYPE_BYTES[tensor.dtype] < 1 << 20 or len(tensor.shape) != 2:
        return _write(file, hasher, source.full(tensor.name, dtype))
    for begin in range(0, tensor.rows, ROWS_AT_ONCE):
        _write(file, hasher, source.read(tensor.name, 0, begin, min(begin + ROWS_AT_ONCE, tensor.rows), dtype))
    return None


def _write(file: BinaryIO, hasher: ChunkHasher, tensor: torch.Tensor) -> None:
    data = memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
    file.write(data)
    hasher.update(data)


def _pad(file: BinaryIO, hasher: ChunkHasher, offset: int) -> None:
    """Zeros up to an offset."""
    zeros = bytes(offset - hasher.bytes)
    file.write(zeros)
    hasher.update(zeros)
