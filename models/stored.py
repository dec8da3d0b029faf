"""The forms in which checkpoints store a tensor, found by names and types, and read as its values.

The type of each stored tensor decides, not what the configuration says of it. Values are

- plain: as stored;
- FP8: e4m3 × the scale of its block of rows and columns (the last blocks are cropped), or of the whole tensor;
- NVFP4: e2m1 × the e4m3 scale of 16 numbers of a row × the tensor's f32 scale, or ÷ its `weight_global_scale`.

Products are f32; that of the two short numbers of NVFP4 is exact, so each value is rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tilecompile.models.shards import Shards

PLAIN = {"F32": "f32", "BF16": "bf16", "F16": "f16"}
"""Plain forms by safetensors' name of the type."""

SCALES = ("F32", "BF16", "F16")
GROUP = 16
"""Numbers of a row that share a scale in NVFP4."""

OTHER = {
    "qweight": "GPTQ or AWQ",
    "weight_packed": "compressed-tensors' INT4",
    "weight_blocks": "MXFP4",
    "weight_zero_point": "weights with zero points",
}
"""Forms that aren't read, by the tensor that one knows them by."""

SUPPORTED = ", want f32, bf16, f16, FP8 (e4m3) or NVFP4"


class Fault(Exception):
    """A tensor that can't be read: what is wrong with it, in words; `kind` is what several faults have in common, and
    `required` what those want."""

    def __init__(self, kind: str, words: str, required: str = "") -> None:
        super().__init__(words)
        self.kind, self.words, self.required = kind, words, required


class Form(Protocol):
    """A tensor as it is stored: the name of its form, its shape, and the stored tensors that it is made of."""

    @property
    def kind(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def parts(self) -> tuple[str, ...]: ...

    def window(self, matrix: int, rows: slice, cols: slice) -> Tensor:
        """Rows and columns [rows, cols] of a matrix; a 1-d tensor is one row, a 2-d one has matrix 0."""


@dataclass(frozen=True)
class Plain:
    """Numbers of a type that torch has."""

    shards: Shards
    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.name,)

    def window(self, matrix: int, rows: slice, cols: slice) -> Tensor:
        if len(self.shape) == 1:
            return self.shards.read(self.name, cols)[None]
        index = (matrix, rows, cols) if len(self.shape) == 3 else (rows, cols)
        return self.shards.read(self.name, *index)


@dataclass(frozen=True)
class Fp8:
    """e4m3 numbers with f32 scales of blocks (rows, columns), or with one scale (block None)."""

    shards: Shards
    name: str
    scale: str
    shape: tuple[int, ...]
    block: tuple[int, int] | None
    kind: str = "fp8"

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.name, self.scale)

    def window(self, matrix: int, rows: slice, cols: slice) -> Tensor:
        numbers = self.shards.read(self.name, rows, cols).float()
        if self.block is None:
            return numbers * self.shards.read(self.scale).float().reshape(())
        height, width = self.block
        first = (rows.start // height, cols.start // width)
        ends = (-(-rows.stop // height), -(-cols.stop // width))
        scales = self.shards.read(self.scale, slice(first[0], ends[0]), slice(first[1], ends[1])).float()
        down = torch.arange(rows.start, rows.stop) // height - first[0]
        across = torch.arange(cols.start, cols.stop) // width - first[1]
        return numbers * scales[down][:, across]


@dataclass(frozen=True)
class Nvfp4:
    """Two e2m1 numbers a byte, the first in the low half; `whole` is the tensor's scale, or what its values are
    divided by."""

    shards: Shards
    name: str
    scale: str
    whole: str
    divides: bool
    shape: tuple[int, ...]
    kind: str = "nvfp4"

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.name, self.scale, self.whole)

    def window(self, matrix: int, rows: slice, cols: slice) -> Tensor:
        byte = cols.start // 2
        packed = self.shards.read(self.name, rows, slice(byte, -(-cols.stop // 2))).int()
        codes = torch.stack([packed & 15, packed >> 4], -1).flatten(1)
        skip = cols.start - 2 * byte
        numbers = E2M1[codes[:, skip : skip + cols.stop - cols.start]]
        group = cols.start // GROUP
        scales = self.shards.read(self.scale, rows, slice(group, -(-cols.stop // GROUP))).float()
        values = numbers * scales[:, torch.arange(cols.start, cols.stop) // GROUP - group]
        whole = self.shards.read(self.whole).float().reshape(())
        return values / whole if self.divides else values * whole


_POSITIVE = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
E2M1 = torch.cat([_POSITIVE, -_POSITIVE])
"""The values of e2m1's codes."""


@dataclass(frozen=True)
class Finder:
    """Finds the form of a tensor: `names` are stored names by those that the model uses, `block` is the size of FP8
    blocks."""

    shards: Shards
    names: dict[str, str]
    block: tuple[int, int]

    def holds(self, name: str) -> bool:
        """Whether a tensor is there in some form, be it one that is read or not."""
        return name in self.names or f"{name}_packed" in self.names

    def find(self, name: str, shape: tuple[int, ...]) -> Form:
        """The form of a tensor that must have this shape. Fault if there is none that can be read."""
        if name in self.names:
            kind, found = self._header(name)
            if kind in PLAIN:
                self._shape(name, found, shape)
                return Plain(self.shards, self.names[name], PLAIN[kind], shape)
            if kind == "F8_E4M3" and len(shape) == 2:
                self._shape(name, found, shape)
                return self._fp8(name, shape)
            if kind == "U8" and f"{name}_scale_2" in self.names and len(shape) == 2:
                return self._nvfp4(name, found, shape, f"{name}_scale_2", divides=False)
            raise Fault("of an unsupported dtype", f"{name} ({kind})", SUPPORTED)
        packed = f"{name}_packed"
        if packed in self.names and len(shape) == 2:
            kind, found = self._header(packed)
            if kind == "U8" and f"{name}_global_scale" in self.names:
                return self._nvfp4(packed, found, shape, f"{name}_global_scale", divides=True)
        stem = name.removesuffix("weight")
        if method := next((method for part, method in OTHER.items() if stem + part in self.names), None):
            raise Fault("in an unsupported form", f"{name} ({method})", SUPPORTED)
        raise Fault("missing", name)

    def _header(self, name: str) -> tuple[str, tuple[int, ...]]:
        stored = self.names[name]
        if stored in self.shards.lost:
            raise Fault("not in the file that the index names", f"{name} ({self.shards.files[stored]})")
        return self.shards.header(stored)

    def _shape(self, name: str, found: tuple[int, ...], want: tuple[int, ...]) -> None:
        if found != want:
            raise Fault("of another shape", f"{name} ({list(found)}, want {list(want)})")

    def _fp8(self, name: str, shape: tuple[int, ...]) -> Form:
        scale = next((s for s in (f"{name}_scale_inv", f"{name}_scale") if s in self.names), None)
        if scale is None:
            raise Fault("without a scale", f"{name} (F8_E4M3, want {name}_scale_inv or {name}_scale)")
        kind, found = self._header(scale)
        grid = tuple(-(-size // block) for size, block in zip(shape, self.block, strict=True))
        whole = found in ((), (1,)) or (found == (1, 1) and grid != (1, 1))
        if kind not in SCALES or not (whole or found == grid):
            raise Fault("with a wrong scale", f"{scale} ({kind} {list(found)}, want F32 {list(grid)} or one number)")
        return Fp8(self.shards, self.names[name], self.names[scale], shape, None if whole else self.block)

    def _nvfp4(self, name: str, found: tuple[int, ...], shape: tuple[int, ...], whole: str, divides: bool) -> Form:
        rows, cols = shape
        self._shape(name, found, (rows, -(-cols // 2)))
        scale = f"{name.removesuffix('_packed')}_scale"
        if scale not in self.names:
            raise Fault("without a scale", f"{name} (NVFP4, want {scale})")
        kind, have = self._header(scale)
        want = (rows, -(-cols // GROUP))
        if kind != "F8_E4M3" or have != want:
            raise Fault("with a wrong scale", f"{scale} ({kind} {list(have)}, want F8_E4M3 {list(want)})")
        kind, have = self._header(whole)
        if kind not in SCALES or have not in ((), (1,), (1, 1)):
            raise Fault("with a wrong scale", f"{whole} ({kind} {list(have)}, want one F32 number)")
        numbers, scales, single = (self.names[part] for part in (name, scale, whole))
        return Nvfp4(self.shards, numbers, scales, single, divides, shape)
