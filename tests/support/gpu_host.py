"""What stands in for a GPU in the tests of tests/gpu: memory of the host, where launches of `run_tasks` run."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpu.cases import Trial, kinds_of
from gpu.records import TASK_LAUNCH, TASK_ROW
from support.cuda_bodies import build
from support.gpu_bodies import BY_HAND, build_c_bodies
from tilecompile.runtime import format as fmt
from tilecompile.targets.cuda.emit import bodies


@dataclass
class HostKernel:
    """The trials' bodies in a shared object, `scratch` bytes of memory for them, and their kinds by node."""

    library: ctypes.CDLL
    scratch: int
    of_node: dict[str, Any]
    by_hand: bool


def host_kernel(trials: list[Trial]) -> HostKernel:
    """The bodies of trials of one op."""
    if trials[0].case.node.op not in BY_HAND:
        library, of_node = build_c_bodies([t.case.node for t in trials])
        return HostKernel(library, 1 << 20, of_node, False)
    kinds, of_gpu, panels = kinds_of(trials)
    scratch = max(bodies(kinds, panels, "sm_90a").scratch.values())
    return HostKernel(build(kinds, panels), scratch, of_gpu, True)


class EngineKernel:
    """All bodies of an engine, in the library that `host_kernel.py` makes beside it."""

    def __init__(self, library: Path) -> None:
        self.run = ctypes.CDLL(str(library))._Z8run_bodyjPK11InstructionPK4StepPKmS6_ij
        self.run.restype = None


def table(address: int, dtype: np.dtype[Any], count: int) -> np.ndarray:
    """Records in memory."""
    return np.frombuffer((ctypes.c_char * (dtype.itemsize * count)).from_address(address), dtype)


class HostCard:
    """The methods of `gpu.card.Card` that part `ops` calls."""

    def __init__(self) -> None:
        self.held: dict[int, np.ndarray] = {}

    def put(self, array: np.ndarray) -> int:
        data = np.zeros(array.nbytes + 1024, np.uint8)
        begin = -data.ctypes.data % 512
        data[begin : begin + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.held[data.ctypes.data + begin] = data
        return int(data.ctypes.data + begin)

    def read(self, address: int, like: np.ndarray) -> np.ndarray:
        return table(address, like.dtype, like.size).reshape(like.shape).copy()

    def free(self, address: int) -> None:
        del self.held[address]

    def wait(self) -> None:
        pass

    def launch(self, kernel: HostKernel | EngineKernel, grid: int, record: np.ndarray) -> None:
        assert record.dtype == TASK_LAUNCH
        l = record[0]
        for row in table(int(l["rows"]), TASK_ROW, int(l["first"]) + grid)[int(l["first"]) :]:
            ins = table(int(l["instructions"]) + 64 * int(row["instruction"]), fmt.INSTRUCTION.dtype, 1).copy()
            runs = []
            for r in range(row["run_begin"], row["run_end"]):
                run = table(int(l["runs"]) + 64 * r, fmt.DEVICE_RUN.dtype, 1)[0]
                expert = int(table(int(run["expert"]), np.dtype("<i4"), 1)[0]) if run["expert"] else 0
                if expert >= 0:
                    runs.append((int(run["source"]) + expert * int(run["stride"]), int(run["bytes"])))
            self._body(kernel, ins, int(l["step"]), int(l["operands"]), runs)

    def _body(
        self, kernel: HostKernel | EngineKernel, ins: np.ndarray, step: int, operands: int, runs: list[tuple[int, int]]
    ) -> None:
        if isinstance(kernel, EngineKernel):
            given = np.array(runs or [(0, 0)], np.uint64)
            of_ins = operands + 8 * int(ins["operand_begin"][0])
            pointers = [ctypes.c_void_p(at) for at in (ins.ctypes.data, step, of_ins, given.ctypes.data)]
            kernel.run(ctypes.c_uint32(int(ins["kind"][0])), *pointers, len(runs), ctypes.c_uint32(1))
            return
        scratch = np.full(kernel.scratch + 1024, 255, np.uint8)
        at = ctypes.c_void_p(scratch.ctypes.data + -scratch.ctypes.data % 1024)
        instruction, step_at = ctypes.c_void_p(ins.ctypes.data), ctypes.c_void_p(step)
        if kernel.by_hand:
            array = np.array(runs or [(0, 0)], np.uint64)
            given = ctypes.c_void_p(array.ctypes.data)
            kernel.library.run(
                instruction, step_at, ctypes.c_void_p(operands), given, len(runs), at, ctypes.c_uint32(1)
            )
            return
        table_of = np.zeros(32, fmt.OPERAND.dtype)
        table_of["buffer"] = np.arange(32)
        forgot = ctypes.c_int()
        fault = kernel.library.run(
            *(instruction, step_at, ctypes.c_void_p(table_of.ctypes.data), None, ctypes.c_void_p(operands)),
            *(None, at, ctypes.byref(forgot)),
        )
        assert fault is None, f"fault at {fault:#x}"
