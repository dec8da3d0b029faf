"""Part `smoke`: the resident kernel with two dependent tasks, in a table made by hand: launch, mailbox, event, end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from gpu.folder import Folder
from tilecompile.runtime import format as fmt

Json = dict[str, Any]

COUNT, VOCAB, STEPS, STALL_MS = 256, 16, 3, 1000
BUFFERS = {
    "ids": ("i32", 8),
    "position": ("i32", 1),
    "next": ("i32", 8),
    "logits": ("f32", VOCAB),
    **dict.fromkeys("xyz", ("f32", COUNT)),
}
"""The buffers in their order: type and elements."""


def make(files: Path, architecture: str) -> Json:
    """The kernel of `kinds`. Needs the compiler."""
    from tilecompile.targets.cuda.kernel import make_kernel

    made, of_name = kinds()
    kernel = make_kernel(made, {}, architecture, None, "two tasks", {})
    (files / "smoke.cubin").write_bytes(kernel.cubin)
    return {"cubin": "smoke.cubin", "kinds": of_name, "shared": kernel.resources["kernel"]["shared"]}


def kinds() -> tuple[list[Any], dict[str, int]]:
    """The kinds of two maps, y = 2x and z = y + 1, and their numbers by name."""
    from tilecompile.ir.node import OpNode, View
    from tilecompile.targets.cuda.emit import task_kinds

    x, y, z = (View.of(name, (1, COUNT), "f32") for name in "xyz")
    nodes = {
        "double": OpNode("double", "map", (x,), (), (y,), {"expr": ("mul", ("in", 0), ("const", 2.0))}),
        "more": OpNode("more", "map", (y,), (), (z,), {"expr": ("add", ("in", 0), ("const", 1.0))}),
    }
    found, of_node = task_kinds(nodes)
    return found, {name: of_node[name].index for name in nodes}


def tables(numbers: dict[str, int]) -> dict[str, np.ndarray]:
    """Two blocks: the first doubles and then commits, the second adds one in between."""
    names, offset = list(BUFFERS), 0
    rows: dict[str, list[Any]] = {name: [] for name in fmt.TABLES}
    for dtype, count in BUFFERS.values():
        kind = fmt.DTYPES.index(dtype)
        rows["buffers"].append((0, 0, offset, 4 * count, 1, count, kind, 0))
        offset += -(-4 * count // 256) * 256

    def add(kind: int, op: int, operands: str, waits: list[int], notifies: list[int]) -> None:
        starts = [len(rows[name]) for name in ("operands", "waits", "notifies", "tape", "regions")]
        rows["operands"] += [(names.index(name), 0, 0) for name in operands]
        rows["waits"] += [(event, 1) for event in waits]
        rows["notifies"] += [(event, 0) for event in notifies]
        counts = (len(waits), len(notifies), 0, 0, len(operands))
        tile = (0, COUNT, 0, 0) if kind else (0, 0, 0, 0)
        rows["instructions"].append((kind, 0, op, tile, *starts, fmt.NONE, *counts, (0, 0, 0)))

    add(numbers["double"], 0, "xy", [], [0])
    add(fmt.COMMIT_KIND, 2, "", [1], [])
    add(numbers["more"], 1, "yz", [0], [1])
    rows["streams"] = [(0, 0, 0, 0, 0, 2), (0, 0, 1, 0, 2, 3)]
    rows["events"] = [(0, 0, 1, 0), (0, 0, 1, 1)]
    return {name: np.array(rows[name], fmt.TABLES[name].dtype) for name in fmt.TABLES}


def launch_record(
    card: Any, made: dict[str, np.ndarray], memory: int, host: dict[str, tuple[np.ndarray, int]]
) -> np.ndarray:
    """The DeviceLaunch of the tables over memory of the card and of the host."""
    from tilecompile.runtime.cuda.tables import controller, device_tables

    places = np.uint64(memory) + made["buffers"]["offset"]
    counters = card.put(np.zeros(8, np.uint32))
    ready = device_tables(made, 0, [0], [counters], places, [0])
    board = card.put(np.zeros(fmt.BOARD_BYTES, np.uint8))
    record = np.zeros(1, fmt.DEVICE_LAUNCH.dtype)
    for name in ("streams", "instructions", "operands", "waits", "notifies", "runs"):
        record[name] = card.put(getattr(ready, name))
    record["boards"], record["stops"] = card.put(np.array([board], np.uint64)), card.put(np.zeros(1, np.int32))
    for name, (_, address) in host.items():
        record[name] = address
    for name in ("logits", "next", "ids", "position"):
        record[name] = places[list(BUFFERS).index(name)]
    programs = np.array([(1, 0, 0, 0)], fmt.PROGRAM.dtype)
    record["programs"], record["program_count"] = card.put(programs), len(programs)
    record["devices"], record["blocks"] = 1, 2
    record["controller"], record["vocab"], record["max_seq_len"] = controller(made), VOCAB, 64
    record["stall_ms"], record["instruction_count"] = STALL_MS, len(made["instructions"])
    return record


def run(folder: Folder, seconds: float, earlier: Json) -> Json:
    """Three steps; whether the second task saw what the first wrote, and what a step took from the host's view."""
    from gpu.card import Card

    about = folder.index["smoke"]
    made = tables(about["kinds"])
    size = int((made["buffers"]["offset"] + made["buffers"]["bytes"]).max())
    x = np.random.default_rng().standard_normal(COUNT).astype(np.float32)
    with Card() as card:
        memory = card.put(np.full(size, 255, np.uint8))
        at = dict(zip(BUFFERS, (memory + made["buffers"]["offset"].astype(np.int64)).tolist(), strict=True))
        card.write(at["x"], x)
        shapes = {"mailbox": fmt.MAILBOX, "status": fmt.STATUS, "stalls": fmt.STALL}
        host = {name: card.host(np.zeros(4, kind.dtype)) for name, kind in shapes.items()}
        host["tokens"] = card.host(np.zeros(128, np.int32))
        ids, ids_at = card.host(np.arange(STEPS, dtype=np.int32))
        kernel = card.kernel(folder.bytes(about["cubin"]), "megakernel", about["shared"])
        card.launch(kernel, 2, launch_record(card, made, memory, host))
        mailbox, status = host["mailbox"][0][:1], host["status"][0][:1]
        begin = time.perf_counter()
        mailbox["ids"], mailbox["count"], mailbox["max_new"] = ids_at, len(ids), 0
        mailbox["submitted"] = 1
        while status["request"][0] != 1 or status["state"][0] == fmt.State.RUNNING:
            if time.perf_counter() - begin > 5:
                break
            time.sleep(1e-4)
        took = time.perf_counter() - begin
        mailbox["stop"] = 1
        card.wait()
        z = card.read(at["z"], x)
        # Host memory goes with the context.
        ended = int(status["state"][0]), int(status["steps"][0])
        stalls = [str(s) for s in host["stalls"][0][:2]] if ended[0] == fmt.State.STALLED else None
    right = bool(np.array_equal(z, 2 * x + 1))
    return {
        "passed": right and ended == (fmt.State.IDLE, STEPS),
        "gpu": card.name,
        "state": ended[0],
        "steps": ended[1],
        "right": right,
        "ms": 1e3 * took,
        "stalls": stalls,
        "summary": [("two dependent tasks", f"{ended[1]} of {STEPS} steps", "right" if right else "wrong numbers")],
    }
