"""pack: writes the weights as tile pools, one file a device, from front to back, a few tensors at a time."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import torch

from tilecompile.errors import InputError
from tilecompile.ir.graph import Tensor
from tilecompile.ir.program import PlacedBuffer, PlacedTile, Program
from tilecompile.ir.tiling import WeightTile
from tilecompile.ops.dtypes import torch_dtype
from tilecompile.runtime.folder.files import ChunkHasher
from tilecompile.runtime.format import DTYPE_BYTES
from tilecompile.runtime.progress import Count
from tilecompile.runtime.weight_formats import FORMATS, ROWS
from tilecompile.targets.codecs import CODECS

if TYPE_CHECKING:
    from tilecompile.engine.plan import Plan

ROWS_AT_ONCE = 4096
"""Rows of a table that are read at a time."""


class Source(Protocol):
    """Where weights come from: a checkpoint, or a generator with a seed."""

    def read(self, name: str, matrix: int, row_begin: int, row_end: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows of one matrix of a parameter, [rows, cols]."""

    def full(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A whole parameter."""


def pack_pools(plan: Plan, source: Source, folder: Path, progress: Count) -> dict[str, dict[str, object]]:
    """Writes the pool of each device; returns the files' manifest entries.

    `progress` is called as by `pack`. InputError where the disk hasn't room.
    """
    sizes = plan.program.pool_bytes
    total, free = sum(sizes), shutil.disk_usage(folder).free
    if total > free:
        raise InputError(f"{folder.parent}: weights need {total} bytes, the disk has {free} free (see --no-weights)")
    tensors = {n: t for g in plan.graphs for n, t in g.tensors.items() if t.role == "weight"}
    (folder / "weights").mkdir()
    files = {}
    for device in range(len(sizes)):
        name = f"weights/device{device}.bin"
        files[name] = pack(plan.program, device, tensors, source, folder / name, progress)
    return files


def pack_text(program: Program) -> str:
    """Where every weight tile is stored, in pool order."""
    lines = [f"pools: {', '.join(f'device {d} {size} bytes' for d, size in enumerate(program.pool_bytes))}"]
    for p in sorted(program.tiles, key=lambda p: (p.device, p.offset)):
        t = p.tile
        copies = f" x {p.copies} experts" if t.gathered else ""
        lines.append(
            f"  device {p.device} +{p.offset} {p.bytes} B{copies}  tile {p.index}: {' + '.join(t.tensors)} "
            f"rows {t.row_begin}:{t.row_end}{'' if t.gathered else f' of matrices {t.begin}:{t.end}'}"
        )
    return "\n".join(lines) + "\n"


def pack(
    program: Program,
    device: int,
    tensors: Mapping[str, Tensor],
    source: Source,
    path: Path,
    progress: Count,
) -> dict[str, object]:
    """Writes the pool file of a device; returns its manifest entry (size and chunk hashes).

    `tensors` are the streamed weights; `progress` is called with bytes: of the pools up to here, and of all pools.
    """
    before, total = sum(program.pool_bytes[:device]), sum(program.pool_bytes)
    dtype_of = {name: tensor.dtype for name, tensor in tensors.items()}
    rows_of = {name: tensor.shape[-2] for name, tensor in tensors.items()}
    packers = {dtype: CODECS[dtype].packer(source.read, rows_of.__getitem__) for dtype in set(dtype_of.values())}
    parts: list[PlacedTile | PlacedBuffer] = [t for t in program.tiles if t.device == device]
    parts += [b for b in program.buffers if b.device == device and b.arena == "weight"]
    hasher = ChunkHasher()
    with path.open("wb") as file:
        for part in sorted(parts, key=lambda p: p.offset):
            _pad(file, hasher, part.offset)
            if isinstance(part, PlacedTile):
                pack_copy = packers[dtype_of[part.tile.tensors[0]]]
                stored = FORMATS[dtype_of[part.tile.tensors[0]]]
                for matrices in _copies(part.tile, part.tile.layout == ROWS and not stored.scaled):
                    _write(file, hasher, pack_copy(part.tile, matrices))
            else:
                _table(file, hasher, part, source)
            progress(before + hasher.bytes, total)
        _pad(file, hasher, program.pool_bytes[device])
    return hasher.entry()


def _copies(tile: WeightTile, alone: bool) -> list[range]:
    """The matrices of each copy of a tile; each matrix `alone` where that makes no difference."""
    each = range(tile.begin, tile.end)
    return [range(m, m + 1) for m in each] if tile.gathered or alone else [each]


def _table(file: BinaryIO, hasher: ChunkHasher, buffer: PlacedBuffer, source: Source) -> None:
    """A constant: small vectors whole, tables a few thousand rows at a time."""
    tensor = buffer.tensor
    dtype = torch_dtype(tensor.dtype)
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
