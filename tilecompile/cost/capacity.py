"""fit: checks that a machine has the memory for a placed model, before anything is planned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from tilecompile.errors import InputError
from tilecompile.ir.placement import PlacedGraph
from tilecompile.runtime.format import DTYPE_BYTES
from tilecompile.runtime.weight_formats import FORMATS
from tilecompile.schedules.machine import Machine


@dataclass
class Needs:
    """Bytes that a device needs, without alignment: weights, caches of all positions, activations of a step."""

    weights: int = 0
    caches: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.caches + self.activations


def needs(placed: Sequence[PlacedGraph], copies: Callable[[int | None], int] = lambda layer: 1) -> list[Needs]:
    """What each device needs. `copies` gives how many layers of the whole model one of a short model stands for.

    A part of a weight that several operators or programs of a device read counts once.
    """
    out = [Needs() for _ in range(placed[0].placement.devices)]
    seen: set[object] = set()
    for program in placed:
        tensors = program.graph.tensors
        for node in program.graph.nodes:
            for w in node.weights:
                key = (node.device, w.tensor, w.offset, w.shape)
                if key not in seen:
                    seen.add(key)
                    *matrices, rows, cols = w.shape
                    size = prod(matrices) * FORMATS[w.dtype].matrix_bytes(rows, cols)
                    out[node.device].weights += size * copies(tensors[w.tensor].layer)
            for view in node.operands:
                tensor = tensors[view.tensor]
                at = node.device if tensor.role == "constant" else tensor.device
                owner = program.graph.program if tensor.role == "activation" else None
                if (at, owner, tensor.name) in seen:
                    continue
                seen.add((at, owner, tensor.name))
                size = tensor.rows * tensor.cols * DTYPE_BYTES[tensor.dtype] * copies(tensor.layer)
                if tensor.role == "constant":
                    out[at].weights += size
                elif tensor.role == "cache":
                    out[at].caches += size
                else:
                    out[at].activations += size
    return out


def check_fit(found: Sequence[Needs], machine: Machine, max_seq_len: int) -> None:
    """InputError with the numbers if a device's memory, or a worker's shared memory, is too small."""
    if machine.memory_bytes is not None:
        device = max(range(len(found)), key=lambda d: found[d].total)
        n = found[device]
        if n.total > machine.memory_bytes:
            raise InputError(
                f"device {device} needs {_gb(n.total)} for weights {_gb(n.weights)}, caches {_gb(n.caches)} of "
                f"{max_seq_len} positions and activations {_gb(n.activations)}, and machine {machine.name} has "
                f"{_gb(machine.memory_bytes)} a device"
            )
    simulator, shared = machine.simulator, machine.shared_memory_bytes
    if simulator is not None and shared is not None and simulator.ring_bytes > shared:
        raise InputError(
            f"the loader's ring takes {simulator.ring_bytes} bytes (simulator.ring_bytes), and a worker of machine "
            f"{machine.name} has {shared} bytes of shared memory"
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size} bytes"
