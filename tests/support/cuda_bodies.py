"""Runs the hand-written GPU bodies on the host, task by task: the real text, on `cuda_host/warp.h`, on packed tiles."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

import tilecompile.ops  # noqa: F401  (registers the ops)
from support.opharness import as_view, poison
from support.partial_steps import Step, first
from tilecompile.ir.node import OpNode, View
from tilecompile.ir.tiling import Tiling, WeightTile
from tilecompile.ops.base import REGISTRY, reference_values
from tilecompile.ops.testing import Case
from tilecompile.runtime import format as fmt
from tilecompile.runtime.weight_formats import FP8
from tilecompile.targets.codecs import CODECS, Copy, Quantised
from tilecompile.targets.cpu.build import find_compiler
from tilecompile.targets.cuda.emit import GpuKind, bodies, header, largest_tiles, once, task_kinds
from tilecompile.targets.cuda.fragments import pack_copy

HOST = Path(__file__).parent / "cuda_host"

SHAPE = replace(fmt.BLOCK, scratch_bytes=1 << 20, shared_bytes=1 << 22)
"""Blocks as on a GPU, with more memory than any body takes."""


@cache
def library(source: str) -> ctypes.CDLL:
    """The compiled source."""
    with tempfile.TemporaryDirectory(prefix="tilecompile-test-") as folder:
        path = Path(folder, "bodies.cpp")
        path.write_text(source)
        command = [find_compiler(), "-std=c++20", "-Og", "-mf16c", "-mfma", "-ffp-contract=off", "-shared", "-fPIC"]
        subprocess.run([*command, "-o", str(path.with_suffix(".so")), str(path)], check=True)
        made = ctypes.CDLL(str(path.with_suffix(".so")))
    made.run.restype = ctypes.c_void_p
    return made


def build(kinds: list[GpuKind], panels: dict[int, int], change: tuple[str, str] = ("", "")) -> ctypes.CDLL:
    """A library with the kinds' bodies, whose text is changed once from the first string to the second."""
    text = bodies(kinds, panels, "sm_90a").source
    if change[0]:
        assert change[0] in text
        text = text.replace(*change)
    table = ", ".join(["nullptr", *(f"tc::{kind.function}" for kind in kinds)])
    parts = [fmt.c_header(), fmt.block_header(SHAPE), (HOST / "warp.h").read_text()]
    parts += [header(name) for name in ("call.cuh", "scalar.cuh", "ranked.cuh", "sampling.h")]
    parts += [text, f"static void (*const BODIES[])(const tc::Call&) = {{{table}}};", (HOST / "bodies.h").read_text()]
    return library("#include <algorithm>\n" + once("\n".join(parts)))


class Bench:
    """A node with tensors, its tiling in `parts`, its packed tiles, and the values that those hold."""

    def __init__(self, case: Case, parts: int, tasks: slice = slice(None), col_begin: int = 0) -> None:
        self.case, self.node = case, case.node
        self.dtype = self.node.weights[0].dtype if self.node.weights else None
        self.tiling: Tiling = REGISTRY[self.node.op].tile(self.node, parts)
        self.tasks = range(len(self.tiling.coords))[tasks]
        self.col_begin = col_begin
        self.values = {v.tensor: torch.full(_stack(v), float("nan"), dtype=torch.float64) for v in self.node.weights}
        self.quantised = Quantised(FP8, self._read, lambda name: self._whole(name).shape[1])
        self.tiles: dict[WeightTile, list[torch.Tensor]] = {}

    def _whole(self, name: str) -> torch.Tensor:
        t = self.case.tensors[name]
        return t.unsqueeze(0) if t.dim() == 2 else t

    def _rows(self, name: str, matrix: int, begin: int, end: int) -> torch.Tensor:
        return self._whole(name)[matrix, begin:end].float()

    def _read(self, name: str, matrix: int, begin: int, end: int, dtype: torch.dtype) -> torch.Tensor:
        return self._rows(name, matrix, begin, end).to(dtype)

    def packed(self, tile: WeightTile, matrix: int) -> torch.Tensor:
        """The bytes of a tile's copy: of one expert, or of all its matrices."""
        matrices = range(matrix, matrix + 1) if tile.gathered else range(tile.begin, tile.end)
        cols = slice(self.col_begin, self.col_begin + tile.cols)
        rows = tile.row_begin, tile.row_end
        if self.dtype == "fp8":
            blocks = slice(cols.start // 128, -(-cols.stop // 128))
            found = [[self.quantised.read(n, m, *rows) for n in tile.tensors] for m in matrices]
            scales = [[s[:, blocks] for _, s in tensors] for tensors in found]
            data = pack_copy([[w[:, cols] for w, _ in tensors] for tensors in found], scales)
        else:
            data = pack_copy([[self._rows(n, m, *rows)[:, cols].bfloat16() for n in tile.tensors] for m in matrices])
        copy = Copy(len(tile.tensors), len(matrices), rows[1] - rows[0], tile.cols, self.col_begin, "fragments")
        for m, found_values in zip(matrices, CODECS[self.dtype].unpack(data, copy), strict=True):
            for name, values in zip(tile.tensors, found_values, strict=True):
                self.values[name][m, slice(*rows), cols] = values.double()
        return data

    def run(
        self, lib: ctypes.CDLL, kind: GpuKind, scratch_bytes: int, seed: int = 1, tokens: int | None = None
    ) -> list[torch.Tensor]:
        """Runs the tasks on poisoned outputs and scratch memory; returns the outputs.

        With `tokens`, in a step of so many, and the outputs have the rows of these only.
        """
        node = self.node
        partly = None if tokens is None else Step(self.case, tokens)
        tensors = partly.tensors if partly else dict(self.case.tensors) | {v.tensor: poison(v) for v in node.outputs}
        operands = np.array(
            [tensors[v.tensor].data_ptr() + v.offset * fmt.DTYPE_BYTES[v.dtype] for v in node.operands], np.uint64
        )
        experts = self.experts()
        step = np.zeros(1, fmt.STEP.dtype)
        step["sequence"], step["tokens"], step["flags"] = 1, tokens or fmt.MAX_TOKENS, fmt.NEEDS_LOGITS
        guard = 256
        for task in self.tasks:
            ins = np.zeros(1, fmt.INSTRUCTION.dtype)
            ins["kind"], ins["tile"] = kind.index, self.tiling.coords[task]
            copies = [
                self.packed(tile, experts[slot] if tile.gathered else 0)
                for tile, slot in self.tiling.weights[task]
                if not tile.gathered or experts[slot] >= 0
            ]
            data = [torch.zeros(len(c) // 16 + 1, 16, dtype=torch.uint8).flatten()[: len(c)].copy_(c) for c in copies]
            runs = np.array([(d.data_ptr(), len(d)) for d in data] or [(0, 0)], np.uint64)
            scratch = np.full(scratch_bytes + 1024 + guard, 255, np.uint8)
            base = -scratch.ctypes.data % 1024
            pointers = [ctypes.c_void_p(a.ctypes.data) for a in (ins, step, operands, runs)]
            at = ctypes.c_void_p(scratch.ctypes.data + base)
            fault = lib.run(*pointers, len(data), at, ctypes.c_uint32(seed + task))
            assert fault is None, f"{node.name} in a step of {tokens} tokens: fault at {fault:#x}"
            assert (scratch[base + scratch_bytes :] == 255).all(), f"{node.name} writes beyond its scratch memory"
        return partly.outputs() if partly else [tensors[v.tensor] for v in node.outputs]

    def experts(self) -> list[int]:
        """The expert of each slot."""
        view = next((v for v in self.node.inputs if v.dtype == "i32"), None)
        return self.case.tensors[view.tensor].flatten().tolist() if view else []

    def wanted(self, tokens: int | None = None) -> list[torch.Tensor]:
        """The op's reference in float64, on the numbers that the tiles hold; with `tokens`, of so many."""
        node = self.node if tokens is None else first(self.case, tokens).node
        wide = {n: t.double() if t.is_floating_point() else t for n, t in self.case.tensors.items()}
        inputs = [as_view(wide[v.tensor], v) for v in node.inputs]
        weights = [self.values[v.tensor][0] if len(v.shape) == 2 else self.values[v.tensor] for v in node.weights]
        weights = [torch.nan_to_num(w) for w in weights]
        return reference_values(node, inputs, weights)

    def written(self) -> torch.Tensor:
        """Which elements of the output the tasks write."""
        access, shape = self.tiling.writes[0], self.node.outputs[0].shape
        found = torch.zeros(shape, dtype=torch.bool)
        for task in self.tasks:
            box = [[int(b) if np.ndim(b) == 0 else int(b[task]) for b in bounds] for bounds in access.box]
            found[tuple(slice(lo, hi) for lo, hi in box)] = True
        return found if self.case.written is None else found & self.case.written


def _stack(view: View) -> tuple[int, ...]:
    return (1, *view.shape) if len(view.shape) == 2 else view.shape


def prepare(benches: list[Bench], change: tuple[str, str] = ("", "")) -> tuple[ctypes.CDLL, list[tuple[GpuKind, int]]]:
    """A library for the benches' nodes, whose names must differ; the kind of each, and the scratch memory it takes."""
    nodes: dict[str, OpNode] = {b.node.name: b.node for b in benches}
    kinds, of_node = task_kinds(nodes)
    panels: dict[int, int] = {}
    for b in benches:
        index = of_node[b.node.name].index
        tiles = [tile.panels for task in b.tiling.weights for tile, _ in task]
        panels[index] = max(panels.get(index, 0), 0, *tiles)
    scratch = bodies(kinds, panels, "sm_90a").scratch
    of_bench = [of_node[b.node.name] for b in benches]
    return build(kinds, panels, change), [(kind, scratch[kind.index]) for kind in of_bench]


def error(got: torch.Tensor, want: torch.Tensor, where: torch.Tensor) -> float:
    """Largest error over the RMS of the expected values."""
    g, w = got[where].double(), want[where]
    return float((g - w).abs().max() / w.pow(2).mean().sqrt())


__all__ = ["Bench", "build", "error", "largest_tiles", "prepare"]
