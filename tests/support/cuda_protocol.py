"""The GPU's loop on the host: builds it over the shim of `cuda_host`, and runs programs on it."""

from __future__ import annotations

import ctypes
import platform
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from support.cuda_programs import DISPATCH, EXPERTS, FIVE, NEXT, PLAIN, VOCAB, Case
from tilecompile.runtime import format as fmt
from tilecompile.runtime.cuda.tables import controller, device_tables
from tilecompile.targets.cpu.build import find_compiler
from tilecompile.targets.cuda.emit import header

HERE = Path(__file__).parent / "cuda_host"
BODIES_FRONT = ("ring.cuh", "call.cuh", "ranked.cuh", "sampling.h")
LOOP = ("commit_rules.h", "draft_depth.h", "worker.cuh", "control.cuh", "logprobs.cuh", "loader.cuh", "loop.cuh")
HEADERS = (*BODIES_FRONT, *LOOP)
SLOT, SLOTS, FRONT = 64, 3, 2048
SHAPE = fmt.BlockShape(lanes=1, warps=4, front_bytes=FRONT, slot_bytes=SLOT, shared_bytes=FRONT + SLOT * SLOTS)
"""Blocks that are simulated: a warp has one lane."""

NEVER = fmt.NONE
MAX_SEQ_LEN = 12


def build(folder: Path, change: Callable[[str], str] = lambda text: text) -> ctypes.CDLL:
    """The harness around the product's headers, with a change to their text."""
    text = change("\n".join(header(name) for name in HEADERS))
    shims = [(HERE / name).read_text() for name in ("clocks.h", "simulation.h", "shim.cuh")]
    kinds = f"enum Kinds {{ PLAIN = {PLAIN}, DISPATCH = {DISPATCH}, NEXT = {NEXT} }};"
    parts = [fmt.c_header(), fmt.block_header(SHAPE), *shims, text, kinds]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "program.h").write_text("\n".join(parts).replace("#pragma once\n", ""))
    library = folder / "harness.so"
    options = ["-std=c++20", "-O2", "-shared", "-fPIC", "-Wall", "-Wno-clobbered", f"-I{folder}"]
    options += ["-mavx2"] if platform.machine() == "x86_64" else []
    subprocess.run([find_compiler(), *options, "-o", str(library), str(HERE / "harness.cpp")], check=True)
    return ctypes.CDLL(str(library))


class Program(ctypes.Structure):
    """`Program` of harness.cpp."""

    _fields_ = [
        *((n, ctypes.c_uint64) for n in ("regions", "tape", "instructions", "places", "buffers", "pools", "device_of")),
        *((n, ctypes.c_uint64) for n in ("order", "order_begin", "memory", "twin", "memory_words", "launches")),
        *((n, ctypes.c_uint32) for n in ("devices", "experts", "vocab")),
    ]


class Ask(ctypes.Structure):
    """A request."""

    _fields_ = [
        ("ids", ctypes.c_int32 * 8),
        *((n, ctypes.c_uint32) for n in ("count", "position", "max_new", "drafts", "abort_at", "stop_at")),
        *((n, ctypes.c_uint32) for n in ("masks", "pauses")),
        *((n, ctypes.c_uint64) for n in ("logits", "script")),
    ]


class Answer(ctypes.Structure):
    """Its outcome."""

    _fields_ = [
        *((n, ctypes.c_uint32) for n in ("state", "reason", "fed", "generated", "steps", "accepted")),
        ("tokens", ctypes.c_int32 * 64),
    ]


def aligned(size: int, dtype: Any = np.uint8) -> np.ndarray:
    """Zeros, at a multiple of 64 bytes."""
    raw = np.zeros(size * np.dtype(dtype).itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size * np.dtype(dtype).itemsize].view(dtype)


@dataclass
class Result:
    """What a run gave: the message of a failure or nothing, answers, stall records, figures, and the requests."""

    error: str
    answers: list[Any]
    stalls: np.ndarray
    operations: int
    hints: int
    copies: int
    asks: list[Ask]


def request(rng: random.Random, **fields: int) -> Ask:
    """A random request."""
    ask = Ask()
    ask.count = rng.randint(1, 4)
    for i in range(8):
        ask.ids[i] = rng.randrange(VOCAB)
    ask.position, ask.max_new = rng.randint(0, 3), rng.randint(0, 3)
    ask.abort_at = ask.stop_at = NEVER
    for name, value in fields.items():
        setattr(ask, name, value)
    return ask


def run(
    library: ctypes.CDLL,
    case: Case,
    asks: list[Ask],
    seed: int,
    stall_ms: int = 2000,
    stops: tuple[int, ...] = (),
    change: Callable[[dict[str, np.ndarray]], None] = lambda tables: None,
    logits: bool = False,
    cut: int = 0,
    script: list[int] | None = None,
) -> Result:
    """Runs a case's programs on the shim, compares its tokens and memory with the reference, and returns what differs.

    The loader takes the first run as `cut` bytes longer than it is.
    """
    tables, programs = case.tables(), case.programs
    change(tables)
    rng = np.random.default_rng(seed)
    pools = [aligned(case.pool // 4 + 4, np.uint32) for _ in range(case.devices)]
    for pool in pools:
        pool[:] = rng.integers(0, 1 << 32, len(pool), np.uint32)
    memory, twin = aligned(case.words, np.uint32), aligned(case.words, np.uint32)
    at = [array.ctypes.data for array in pools]
    counters = [aligned(len(case.events) + 1, np.uint32) for _ in range(case.devices)]
    boards = [aligned(fmt.BOARD_BYTES) for _ in range(case.devices)]
    board_table = np.array([b.ctypes.data for b in boards], np.uint64)
    mailbox, status = aligned(1, fmt.MAILBOX.dtype), aligned(1, fmt.STATUS.dtype)
    stalls = aligned(case.devices * case.blocks, fmt.STALL.dtype)
    tokens, stop_ids = aligned(64, np.int32), np.array([*stops, 0], np.int32)
    places = np.uint64(memory.ctypes.data) + tables["buffers"]["offset"]
    programs.rows["next"], programs.rows["logits"] = places[2:4]
    launches = aligned(case.devices, fmt.DEVICE_LAUNCH.dtype)
    kept: list[Any] = []
    for device in range(case.devices):
        d = device_tables(tables, device, programs.launched, [c.ctypes.data for c in counters], places, at)
        d.runs["bytes"][:1] = d.runs["bytes"][:1].astype(np.int64) + cut
        kept.append(d)
        launch = launches[device]
        for name in ("streams", "instructions", "operands", "waits", "notifies", "runs"):
            launch[name] = getattr(d, name).ctypes.data
        launch["programs"], launch["boards"] = programs.rows.ctypes.data, board_table.ctypes.data
        launch["mailbox"], launch["status"] = mailbox.ctypes.data, status.ctypes.data
        launch["tokens"], launch["stalls"] = tokens.ctypes.data, stalls.ctypes.data
        launch["stops"], launch["stop_count"] = stop_ids.ctypes.data, len(stops)
        launch["ids"], launch["position"] = places[:2]
        launch["device"], launch["devices"], launch["first_worker"] = device, case.devices, device * case.blocks
        launch["program_count"], launch["first_program"] = len(programs.rows), programs.first
        launch["only_program"], launch["controller"] = programs.only, controller(tables)
        launch["blocks"] = case.blocks
        launch["vocab"], launch["max_seq_len"], launch["stall_ms"] = VOCAB, MAX_SEQ_LEN, stall_ms
        launch["instruction_count"] = len(tables["instructions"])
    device_of = np.zeros(len(case.tasks), np.uint32)
    for s in tables["streams"]:
        device_of[s["begin"] : s["end"]] = s["device"]
    sequences = [case.sequence(p) for p in range(len(programs.rows))]
    order, pool_table = np.concatenate(sequences).astype(np.uint32), np.array(at, np.uint64)
    order_begin = np.cumsum([0, *map(len, sequences)]).astype(np.uint32)
    program = Program()
    named = {"regions": tables["regions"], "tape": tables["tape"], "instructions": tables["instructions"]}
    named |= {"places": places, "buffers": tables["buffers"], "pools": pool_table, "device_of": device_of}
    named |= {"order": order, "order_begin": order_begin, "memory": memory, "twin": twin, "launches": launches}
    for name, array in named.items():
        setattr(program, name, array.ctypes.data)
    program.memory_words, program.devices = case.words, case.devices
    program.experts, program.vocab = EXPERTS, VOCAB
    for ask in asks:
        if script is not None:
            kept.append(np.array(script, np.int32))
            ask.script = kept[-1].ctypes.data
        if logits:
            kept.append(np.zeros(8 * VOCAB, np.float32))
            ask.logits = kept[-1].ctypes.data
    ask_array, answers = (Ask * len(asks))(*asks), (Answer * len(asks))()
    about, message = (ctypes.c_uint64 * 3)(), ctypes.create_string_buffer(256)
    library.tc_try(ctypes.byref(program), ask_array, answers, len(asks), ctypes.c_uint64(seed), about, message)
    return Result(message.value.decode(), list(answers), stalls, *map(int, about), list(ask_array))


def random_run(library: ctypes.CDLL, seed: int) -> Result:
    """One to three random programs, or those of an engine that drafts, with as many random requests."""
    rng = random.Random(seed)
    case = Case(rng, programs=rng.choice([1, 1, 2, 3, FIVE, FIVE]))
    most = 9 if case.programs.drafts else 3
    asks = [
        request(
            rng,
            max_new=rng.randint(0, most),
            drafts=rng.randint(0, case.programs.drafts),
            abort_at=rng.randint(0, most) if rng.random() < 0.2 else NEVER,
            masks=rng.random() < 0.2,
        )
        for _ in range(rng.randint(1, 3))
    ]
    stops = (rng.randrange(VOCAB),) if rng.random() < 0.3 else ()
    script = [rng.randrange(VOCAB) for _ in range(most + fmt.MAX_DRAFTS)] if rng.random() < 0.2 else None
    return run(library, case, asks, seed, stops=stops, logits=rng.random() < 0.3, script=script)
