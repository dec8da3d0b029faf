"""Runs the CPU bodies of ops task by task, outside any engine: on plain tensors, or in guarded memory.

In guarded memory every tensor, the weight pool and the scratch memory touch an inaccessible page at one end, and all
that a task must not touch is filled with a pattern that no right result contains.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import mmap
import tempfile
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import tilecompile.ops  # noqa: F401  (registers the ops)
from tilecompile.ir.node import OpNode, View
from tilecompile.ir.tiling import WeightTile
from tilecompile.ops.base import REGISTRY, reference_values
from tilecompile.ops.dtypes import torch_dtype
from tilecompile.ops.testing import Case
from tilecompile.passes.schedule import ALIGN
from tilecompile.runtime import format as fmt
from tilecompile.runtime.machine import cpu_features
from tilecompile.targets.codecs import CODECS
from tilecompile.targets.cpu.build import ISAS, Isa, build
from tilecompile.targets.cpu.emit import bodies_source, task_kinds
from tilecompile.targets.kind import Kind

Raw = npt.NDArray[np.unsignedinteger]
Bytes = npt.NDArray[np.uint8]

RUNNABLE = [isa for isa in ISAS.values() if set(isa.features) <= cpu_features()]
OPS = [name for name in REGISTRY if name != "commit"]

SHIM = """
#include <setjmp.h>
#include <signal.h>
static sigjmp_buf outside;
static void* fault;
static void on_fault(int, siginfo_t* info, void*) {
  fault = info->si_addr;
  siglongjmp(outside, 1);
}
// Runs one task: the address at which it faulted, or null. `forgot` becomes 1 if the task left the note that says what
// the scratch memory holds.
extern "C" void* run(const Instruction* ins, const Step* step, const Operand* operands, const TapeRun* tape,
                     char* const* buffers, const char* pool, char* scratch_base, int* forgot) {
  static const char note = 0;
  Scratch scratch{scratch_base, &note, &note, 0};
  struct sigaction ours = {}, theirs;
  ours.sa_sigaction = on_fault;
  ours.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &ours, &theirs);
  fault = nullptr;
  if (!sigsetjmp(outside, 1)) BODIES[ins->kind](Call{ins, step, operands, tape, buffers, pool, &scratch});
  sigaction(SIGSEGV, &theirs, nullptr);
  *forgot = scratch.norm_x == &note;
  return fault;
}
"""


# --- building ---------------------------------------------------------------------------------------------------------

_compilers = ThreadPoolExecutor(2)


@cache
def _library(source: str, isa: Isa) -> Future[ctypes.CDLL]:
    def make() -> ctypes.CDLL:
        with tempfile.TemporaryDirectory(prefix="tilecompile-test-") as folder:
            path = Path(folder, "bodies.cpp")
            path.write_text(source)
            build(path, path.with_suffix(".so"), isa)
            library = ctypes.CDLL(str(path.with_suffix(".so")))
        library.run.restype = ctypes.c_void_p
        return library

    return _compilers.submit(make)


def build_bodies(nodes: list[OpNode], isa: Isa) -> tuple[ctypes.CDLL, dict[str, Kind]]:
    """A shared object with the kinds of the nodes (whose names must differ), and the kind of each.

    Built once a process; the other instruction sets are likely needed next, so they are built at the same time.
    """
    kinds, of_node = task_kinds({node.name: node for node in nodes})
    source = bodies_source(kinds) + SHIM
    wanted = _library(source, isa)
    for other in RUNNABLE:
        _library(source, other)
    return wanted.result(), of_node


def cases_of(op: str, seed: int) -> list[Case]:
    """The op's cases with names made distinct."""
    module = importlib.import_module(f"tilecompile.ops.{op}.cases")
    cases = list(module.cases(torch.Generator().manual_seed(seed)))
    return [
        dataclasses.replace(c, node=dataclasses.replace(c.node, name=f"{c.node.name}_{i}")) for i, c in enumerate(cases)
    ]


def any_seed() -> int:
    """A seed to draw cases from; messages of failures state it."""
    return int(torch.randint(1 << 30, ()))


# --- running one task -------------------------------------------------------------------------------------------------


def expert_operand(node: OpNode) -> int:
    """The operand with the expert of each slot: i32 [1, slots]."""
    return next(i for i, v in enumerate(node.inputs) if v.dtype == "i32" and len(v.shape) == 2 and v.shape[0] == 1)


def pack_pool(
    case: Case, tiles: tuple[tuple[WeightTile, int], ...], fill: int | None = None
) -> tuple[Bytes, npt.NDArray[np.void]]:
    """The pool of one task, which holds its tiles and nothing else, and the task's tape.

    With `fill`, the padding between tiles is full of it, and so are tiles of experts that no slot of the task holds.
    """

    def read(name: str, matrix: int, begin: int, end: int, dtype: torch.dtype) -> torch.Tensor:
        t = case.tensors[name]
        return (t.unsqueeze(0) if t.dim() == 2 else t)[matrix, begin:end].to(dtype)

    dtype_of = {w.tensor: w.dtype for w in case.node.weights}
    pack = {d: CODECS[d].packer(read, lambda name: case.tensors[name].shape[-2]) for d in set(dtype_of.values())}
    offsets: dict[WeightTile, int] = {}
    pool = np.zeros(0, np.uint8)
    tape = np.zeros(max(1, len(tiles)), fmt.TAPE_RUN.dtype)
    for i, (tile, slot) in enumerate(tiles):
        if tile not in offsets:
            packed = pack[dtype_of[tile.tensors[0]]](tile, range(tile.begin, tile.end))
            data = packed.view(torch.uint8).numpy()
            if fill is not None and tile.gathered:
                experts = case.tensors[case.node.inputs[expert_operand(case.node)].tensor].flatten().tolist()
                held = {experts[s] for other, s in tiles if other == tile}
                each = data.reshape(tile.end - tile.begin, -1)
                each[[m not in held for m in range(tile.begin, tile.end)]] = filling(each.shape[1], fill)
            padding = -len(pool) % ALIGN
            offsets[tile] = len(pool) + padding
            pool = np.concatenate([pool, filling(padding, fill or 0), data])
        size = tile.bytes(dtype_of[tile.tensors[0]])
        tape[i] = (offsets[tile], size, size if tile.gathered else 0, slot, 0)
    return pool, tape


def call(
    library: ctypes.CDLL,
    kind: Kind,
    node: OpNode,
    coords: npt.NDArray[np.int32],
    addresses: dict[str, int],
    tape: npt.NDArray[np.void],
    pool: int,
    scratch: int,
    tokens: int = fmt.MAX_TOKENS,
) -> tuple[int | None, bool]:
    """Runs one task on tensors at `addresses`, in a step of `tokens` tokens.

    Returns the address at which it faulted, and whether it left the note on what the scratch memory holds.
    """
    ins = np.zeros(1, fmt.INSTRUCTION.dtype)
    ins["kind"], ins["tile"] = kind.index, coords
    step = np.zeros(1, fmt.STEP.dtype)
    step["sequence"], step["tokens"], step["flags"] = 1, tokens, fmt.NEEDS_LOGITS
    operands = np.zeros(len(node.operands), fmt.OPERAND.dtype)
    for i, view in enumerate(node.operands):
        operands[i] = (i, view.shape[0], view.offset * fmt.DTYPE_BYTES[view.dtype])
    buffers = np.array([addresses[v.tensor] for v in node.operands], np.uint64)
    forgot = ctypes.c_int()
    tables = [ctypes.c_void_p(a.ctypes.data) for a in (ins, step, operands, tape, buffers)]
    fault = library.run(*tables, ctypes.c_void_p(pool), ctypes.c_void_p(scratch), ctypes.byref(forgot))
    return fault, bool(forgot.value)


def run_body(
    library: ctypes.CDLL, kind: Kind, case: Case, parts: int, tokens: int = fmt.MAX_TOKENS
) -> list[torch.Tensor]:
    """Runs every task of the node in a step of `tokens` tokens; returns its outputs.

    Tensors that the op mutates change in `case.tensors`. Outputs are poisoned before the run, so that what a tile fails
    to write is seen.
    """
    node = case.node
    tensors = dict(case.tensors) | {v.tensor: poison(v) for v in node.outputs}
    tiling = REGISTRY[node.op].tile(node, parts)
    scratch = np.full(tiling.scratch + 2 * ALIGN, 255, np.uint8)
    base = scratch.ctypes.data + (-scratch.ctypes.data) % ALIGN
    addresses = {v.tensor: tensors[v.tensor].data_ptr() for v in node.operands}
    for task, coords in enumerate(tiling.coords):
        pool, tape = pack_pool(case, tiling.weights[task])
        fault, _ = call(library, kind, node, coords, addresses, tape, pool.ctypes.data, base, tokens)
        assert fault is None, f"{node.op} {node.name} task {task}: fault at {fault:#x}"
    return [tensors[v.tensor] for v in node.outputs]


# --- guarded memory ---------------------------------------------------------------------------------------------------

PAGE = mmap.PAGESIZE
REACH = 1 << 42
"""How far an absurd id leads: 2^31 rows of 2 KiB."""
PLACES, PLACE = 4096, 1 << 20
NO_ACCESS, MAP_FIXED, MAP_NORESERVE = 0, 0x10, 0x4000  # of Linux; Python 3.11 has no names for them

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *3 * (ctypes.c_int,), ctypes.c_long)


def _map(address: int | None, size: int, protection: int) -> int:
    """Maps zeroed pages, in place of those at `address` if one is given; returns where."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE | (MAP_FIXED if address else 0)
    found = _libc.mmap(address, size, protection, flags, -1, 0)
    if found is None or found == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), f"no address space of {size} bytes")
    return int(found)


@cache
def _places() -> list[int]:
    """Where guarded memory may be mapped: in the middle of address space that nothing else is in.

    So a task that goes where an absurd id leads meets neither this process's memory, which it would destroy unseen, nor
    any that it may touch.
    """
    begin = _map(None, 2 * REACH + PLACES * PLACE, NO_ACCESS) + REACH
    return list(range(begin, begin + PLACES * PLACE, PLACE))


def filling(size: int, pattern: int) -> Bytes:
    """`size` bytes, an even number, of a 16-bit pattern, which is f32, bf16 and i32 at once."""
    return np.full(size // 2, pattern, np.uint16).view(np.uint8)


class Guarded:
    """`size` bytes that begin or end at an inaccessible page; on the other side filler, then another such page."""

    def __init__(self, size: int, at_end: bool) -> None:
        inner = max(PAGE, -(-size // PAGE) * PAGE)
        if inner >= PLACE:
            raise ValueError(f"{size} bytes of guarded memory are too many, want at most {PLACE - PAGE}")
        place = _places().pop()
        _map(place, inner, mmap.PROT_READ | mmap.PROT_WRITE)
        weakref.finalize(self, lambda: _places().append(_map(place, inner, NO_ACCESS)))
        self.inner: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * inner).from_address(place))
        begin = inner - size if at_end else 0
        self.bytes: Bytes = self.inner[begin : begin + size]
        self.filler = (self.inner[:begin], self.inner[begin + size :])
        self.address: int = self.inner.ctypes.data + begin

    def fill(self, pattern: int) -> None:
        """Writes a 16-bit pattern everywhere."""
        self.inner.view(np.uint16)[:] = pattern

    def filler_kept(self, pattern: int) -> bool:
        """Whether the filler still is the pattern; it begins and ends with whole elements of it."""
        return all(bool((f.view(np.uint16) == pattern).all()) for f in self.filler)

    def holds(self, address: int) -> bool:
        """Whether an address is in the pages, guards included."""
        begin = self.inner.ctypes.data - PAGE
        return begin <= address < begin + len(self.inner) + 2 * PAGE


# --- views and comparisons --------------------------------------------------------------------------------------------


def raw(tensor: torch.Tensor) -> Raw:
    """The bits of a contiguous tensor's elements, flat."""
    signed = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    bits: Raw = tensor.view(signed).flatten().numpy().view(f"u{tensor.element_size()}")
    return bits


def as_view(tensor: torch.Tensor, view: View) -> torch.Tensor:
    """The part of a whole tensor that a view shows."""
    return torch.as_strided(tensor, view.shape, view.strides, view.offset)


def poison(view: View) -> torch.Tensor:
    """An output tensor full of NaN, or of a number that no index has."""
    value = -(2**31) + 7 if view.dtype == "i32" else float("nan")
    return torch.full(view.shape, value, dtype=torch_dtype(view.dtype))


def expected(case: Case) -> list[torch.Tensor]:
    """The eager reference's outputs; mutated tensors change in place."""
    node = case.node
    inputs = [as_view(case.tensors[v.tensor], v) for v in node.inputs]
    weights = [case.tensors[v.tensor] for v in node.weights]
    return reference_values(node, inputs, weights)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two contiguous tensors are equal bit by bit; NaN equals itself."""
    return bool((raw(a) == raw(b)).all())


def assert_close(got: torch.Tensor, want: torch.Tensor, tolerance: float, what: str) -> None:
    """Equality for integers or zero tolerance; else max error over the RMS of the expected values."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    if tolerance == 0 or not want.is_floating_point():
        assert torch.equal(got, want), f"{what}: {got.flatten()[:8]} … expected {want.flatten()[:8]} …"
        return
    error = float((got.double() - want.double()).abs().max()) / (float(want.double().pow(2).mean().sqrt()) + 1e-30)
    assert error <= tolerance, f"{what}: max error / RMS {error:.2e}, expected at most {tolerance:.0e}"
