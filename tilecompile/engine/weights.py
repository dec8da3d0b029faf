"""pack: weights to tile pools, one file a device, written from front to back a few tensors at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import torch

from tilecompile.errors import InputError
from tilecompile.ir.graph import Tensor
from tilecompile.ir.program import PlacedBuffer, PlacedTile, Program
from tilecompile.ir.tiling import WeightTile
from tilecompile.ops.dtypes import TORCH_DTYPES
from tilecompile.runtime.folder.files import ChunkHasher
from tilecompile.runtime.format import DTYPE_BYTES, PANEL, SCALE_BLOCK
from tilecompile.runtime.progress import Count
from tilecompile.targets.cuda.fragments import Quantised, pack_copy
from tilecompile.targets.tiles import pack_rows

if TYPE_CHECKING:
    from tilecompile.engine.plan import Plan

ROWS_AT_ONCE = 4096
"""Rows of a table that are read together."""


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
    quantised = Quantised(
        lambda name, matrix, begin, end: source.read(name, matrix, begin, end, torch.float32),
        lambda name: tensors[name].shape[-2],
    )
    parts: list[PlacedTile | PlacedBuffer] = [t for t in program.tiles if t.device == device]
    parts += [b for b in program.buffers if b.device == device and b.arena == "weight"]
    hasher = ChunkHasher()
    with path.open("wb") as file:
        for part in sorted(parts, key=lambda p: p.offset):
            _pad(file, hasher, part.offset)
            if isinstance(part, PlacedTile):
                for data in _copies(part, dtype_of, source, quantised):
                    _write(file, hasher, data)
            else:
                _table(file, hasher, part, source)
            progress(before + hasher.bytes, total)
        _pad(file, hasher, program.pool_bytes[device])
    return hasher.entry()


def _copies(
    placed: PlacedTile, dtype_of: Mapping[str, str], source: Source, quantised: Quantised
) -> Iterator[torch.Tensor]:
    """The bytes of a tile: of each copy, or in rows, where it makes no difference, of each matrix."""
    tile = placed.tile
    each = range(tile.begin, tile.end)
    for matrices in [range(m, m + 1) for m in each] if tile.gathered or tile.layout == "rows" else [each]:
        if dtype_of[tile.tensors[0]] == "fp8":
            yield _fp8_copy(tile, matrices, quantised)
            continue
        dtypes = [TORCH_DTYPES[dtype_of[name]] for name in tile.tensors]
        cols = slice(tile.col_begin, tile.col_begin + tile.cols)
        rows = [
            [
                source.read(name, matrix, tile.row_begin, tile.row_end, dtype)[:, cols]
                for name, dtype in zip(tile.tensors, dtypes, strict=True)
            ]
            for matrix in matrices
        ]
        yield pack_rows(rows[0]) if tile.layout == "rows" else pack_copy(rows)


def _fp8_copy(tile: WeightTile, matrices: range, quantised: Quantised) -> torch.Tensor:
    """The bytes of one copy of an fp8 tile, with the scales of its blocks."""
    if tile.row_begin % PANEL:
        name = " + ".join(tile.tensors)
        raise InputError(f"{name}: a tile begins at row {tile.row_begin}, in fp8 it must be a multiple of {PANEL}")
    end = tile.col_begin + tile.cols
    blocks = slice(tile.col_begin // SCALE_BLOCK, -(-end // SCALE_BLOCK))
    found = [[quantised.read(name, m, tile.row_begin, tile.row_end) for name in tile.tensors] for m in matrices]
    rows = [[values[:, tile.col_begin : end] for values, _ in tensors] for tensors in found]
    return pack_copy(rows, [[scales[:, blocks] for _, scales in tensors] for tensors in found])


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
