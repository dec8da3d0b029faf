"""Runs the CPU body of an op on a test case, task by task, outside any engine.

Outputs are poisoned before the run, so that what a tile fails to write is seen.
"""

from __future__ import annotations

import ctypes
import tempfile
from pathlib import Path

import numpy as np
import torch

from tilecompile.build import Isa, build
from tilecompile.emit import Kind, bodies_source, task_kinds
from tilecompile.ops.base import REGISTRY, OpNode, View, WeightTile
from tilecompile.ops.testing import TORCH_DTYPES, Case
from tilecompile.runtime import format as fmt
from tilecompile.tiles import pack_tile

SHIM = """
extern "C" void run(const Instruction* ins, const Step* step, const Operand* operands, const TapeRun* tape,
                    char* const* buffers, const char* pool, char* scratch_base) {
  Scratch scratch{scratch_base};
  BODIES[ins->kind](Call{ins, step, operands, tape, buffers, pool, &scratch});
}
"""


def build_bodies(nodes: list[OpNode], isa: Isa) -> tuple[ctypes.CDLL, dict[str, Kind]]:
    """A shared object with the kinds of the nodes (whose names must differ), and the kind of each."""
    kinds, of_node = task_kinds(nodes)
    folder = Path(tempfile.mkdtemp(prefix="tilecompile-test-"))
    source = folder / "bodies.cpp"
    source.write_text(bodies_source(kinds) + SHIM)
    build(source, folder / "bodies.so", isa)
    return ctypes.CDLL(str(folder / "bodies.so")), of_node


def as_view(tensor: torch.Tensor, view: View) -> torch.Tensor:
    """The part of a whole tensor that a view shows."""
    return torch.as_strided(tensor, view.shape, view.strides, view.offset)


def poison(view: View) -> torch.Tensor:
    """An output tensor full of not-a-number, or of a number that no index has."""
    value = -(2**31) + 7 if view.dtype == "i32" else float("nan")
    return torch.full(view.shape, value, dtype=TORCH_DTYPES[view.dtype])


def run_body(library: ctypes.CDLL, kind: Kind, case: Case, parts: int, position: int = 0) -> list[torch.Tensor]:
    """Runs every task of the node; returns its outputs. Tensors that the op mutates change in `case.tensors`."""
    node = case.node
    tensors = dict(case.tensors) | {v.tensor: poison(v) for v in node.outputs}
    tiling = REGISTRY[node.op].tile(node, parts)
    step = np.zeros(1, fmt.STEP.dtype)
    step["sequence"], step["position"], step["tokens"] = 1, position, node.outputs[0].shape[0] if node.outputs else 1
    operands = np.zeros(len(node.operands), fmt.OPERAND.dtype)
    for i, view in enumerate(node.operands):
        operands[i] = (i, 0, view.offset * fmt.DTYPE_BYTES[view.dtype])
    buffers = np.array([tensors[v.tensor].data_ptr() for v in node.operands], np.uint64)
    scratch = np.full(max(tiling.scratch, 64) + 64, 255, np.uint8)
    aligned = scratch.ctypes.data + (-scratch.ctypes.data) % 64

    def read(name: str, matrix: int, begin: int, end: int) -> torch.Tensor:
        t = tensors[name]
        return (t.unsqueeze(0) if t.dim() == 2 else t)[matrix, begin:end]

    for task in range(len(tiling.coords)):
        ins = np.zeros(1, fmt.INSTRUCTION.dtype)
        ins["kind"], ins["tile"] = kind.index, tiling.coords[task]
        packed: dict[WeightTile, tuple[int, int]] = {}
        chunks: list[np.ndarray] = []
        tape = np.zeros(max(1, len(tiling.weights[task])), fmt.TAPE_RUN.dtype)
        for i, (tile, slot) in enumerate(tiling.weights[task]):
            if tile not in packed:
                data = pack_tile(tile, read)
                packed[tile] = (sum(len(c) for c in chunks), len(data))
                chunks.append(data)
            stride = packed[tile][1] // (tile.end - tile.begin) if tile.gathered else 0
            tape[i] = (packed[tile][0], stride or packed[tile][1], stride, slot, 0)
        pool = np.concatenate([*chunks, np.zeros(64, np.uint8)])
        library.run(
            *(ctypes.c_void_p(a.ctypes.data) for a in (ins, step, operands, tape, buffers, pool)),
            ctypes.c_void_p(aligned),
        )
    return [tensors[v.tensor] for v in node.outputs]


def expected(case: Case) -> list[torch.Tensor]:
    """The eager reference's outputs; mutated tensors change in place."""
    node = case.node
    inputs = [as_view(case.tensors[v.tensor], v) for v in node.inputs]
    weights = [case.tensors[v.tensor] for v in node.weights]
    result = REGISTRY[node.op].reference(node, inputs, weights)
    return list(result) if isinstance(result, tuple) else [] if result is None else [result]


def assert_close(got: torch.Tensor, want: torch.Tensor, tolerance: float, what: str) -> None:
    """Equality for integers or zero tolerance; else max error over the RMS of the wanted values."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, wanted {tuple(want.shape)}"
    if tolerance == 0 or not want.is_floating_point():
        assert torch.equal(got, want), f"{what}: {got.flatten()[:8]} … wanted {want.flatten()[:8]} …"
        return
    error = float((got.double() - want.double()).abs().max()) / (float(want.double().pow(2).mean().sqrt()) + 1e-30)
    assert error <= tolerance, f"{what}: max error / RMS {error:.2e}, wanted {tolerance:.0e}"
