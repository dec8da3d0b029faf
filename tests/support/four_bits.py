"""A weight format outside the package: whole numbers of 4 bits, each 32 of a row with an e4m3 scale."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tilecompile.ir.tiling import PANEL, WeightTile
from tilecompile.runtime.format import FRAGMENT_BYTES
from tilecompile.runtime.weight_formats import FORMATS, FRAGMENTS, ROWS, CudaLoader, WeightFormat
from tilecompile.targets.codecs import CODECS, Copy, Packer, Read, RowsOf, Values

BLOCK = 32
INT4 = WeightFormat(
    name="int4",
    code=9,
    bits=4,
    torch="int4",
    cpp="int4",
    exact="bf16",
    block=(1, BLOCK),
    scale="e4m3",
    largest=7.0,
    layouts=(ROWS, FRAGMENTS),
    cuda=CudaLoader("Int4", 4),
)


def quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Whole rows f32 [rows, cols] as numbers 1 to 15 (8 is 0), uint8 [rows, cols], and scales e4m3 [rows, blocks]."""
    cols = rows.shape[1]
    blocks = torch.nn.functional.pad(rows, (0, -cols % BLOCK)).view(len(rows), -1, BLOCK)
    scales = (blocks.abs().amax(2) / 7).to(torch.float8_e4m3fn)
    wide = scales.float().clamp(min=2**-9)
    numbers = (blocks / wide[:, :, None]).round().clamp(-7, 7) + 8
    return numbers.view(len(rows), -1)[:, :cols].to(torch.uint8), wide.to(torch.float8_e4m3fn)


def dequantised(numbers: Tensor, scales: Tensor, phase: int = 0) -> Tensor:
    """The values of numbers whose first column is `phase` behind the start of its block."""
    at = (torch.arange(numbers.shape[1]) + phase) // BLOCK
    return (numbers.float() - 8) * scales.float()[:, at]


def whole_panels(data: Tensor) -> Tensor:
    """Rows of bytes, padded with zeros to whole panels: [panels, 16, bytes]."""
    padded = torch.nn.functional.pad(data, (0, 0, 0, -len(data) % PANEL))
    return padded.view(-1, PANEL, data.shape[1])


class Codec:
    """In fragments: scales by panel, row and block; then k-blocks [16 rows][64 columns], two numbers a byte."""

    values = torch.float32

    def packer(self, read: Read, rows_of: RowsOf) -> Packer:
        def pack(tile: WeightTile, matrices: range) -> Tensor:
            end = tile.col_begin + tile.cols
            heads, bodies = [], []
            for m in matrices:
                found = [quantised(read(n, m, tile.row_begin, tile.row_end, torch.float32)) for n in tile.tensors]
                blocks = slice(tile.col_begin // BLOCK, -(-end // BLOCK))
                scales = [whole_panels(s.view(torch.uint8)[:, blocks].contiguous()) for _, s in found]
                numbers = [whole_panels(self._bytes(n[:, tile.col_begin : end])) for n, _ in found]
                heads.append(torch.stack(scales, 1).flatten())
                blocked = [n.view(len(n), PANEL, -1, BLOCK).transpose(1, 2) for n in numbers]
                bodies.append(torch.stack(blocked, 1).flatten())
            head = torch.cat(heads)
            return torch.cat([torch.nn.functional.pad(head, (0, -len(head) % FRAGMENT_BYTES)), *bodies])

        return pack

    @staticmethod
    def _bytes(numbers: Tensor) -> Tensor:
        """Two numbers a byte, the first in the low half, whole k-blocks of 64 columns."""
        wide = torch.nn.functional.pad(numbers, (0, -numbers.shape[1] % 64))
        return wide[:, ::2] | wide[:, 1::2] << 4

    def unpack(self, data: Tensor, copy: Copy) -> Values:
        panels, count = -(-copy.rows // PANEL), INT4.panel_scales(copy.cols, copy.col_begin) // PANEL
        size = copy.count * copy.tensors * panels * PANEL * count
        begin = -(-size // FRAGMENT_BYTES) * FRAGMENT_BYTES
        scales = data[:size].view(copy.count, panels, copy.tensors, PANEL, count)
        packed = data[begin:].view(copy.count, panels, copy.tensors, -1, PANEL, BLOCK).transpose(3, 4)
        out: Values = []
        for m in range(copy.count):
            out.append([])
            for i in range(copy.tensors):
                pairs = packed[m, :, i].reshape(panels * PANEL, -1)
                numbers = torch.stack([pairs & 15, pairs >> 4], 2).flatten(1)[: copy.rows, : copy.cols]
                of_rows = scales[m, :, i].reshape(panels * PANEL, count)[: copy.rows].contiguous()
                out[-1].append(
                    dequantised(numbers, of_rows.view(torch.float8_e4m3fn), INT4.phase(copy.col_begin)).contiguous()
                )
        return out


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds the format for the time of a test."""
    monkeypatch.setitem(FORMATS, INT4.name, INT4)
    monkeypatch.setitem(CODECS, INT4.name, Codec())
