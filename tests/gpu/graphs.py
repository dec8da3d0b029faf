"""Part `graphs`: the engine's own bodies without residency: launches of one instruction a block, in a CUDA graph.

A launch for each level of operators, which waits for nothing but the launch before it; once as plain launches, and once
as programmatic ones, whose blocks begin with their weights while the launch before is at work.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from gpu.card import Card
from gpu.folder import Folder
from gpu.levels import levels, task_rows
from gpu.records import STALL_NS, TASK_LAUNCH, TASK_ROW, record
from gpu.share import bandwidth_of, loaded, plan_for, roof
from tilecompile.runtime import format as fmt
from tilecompile.runtime.cuda.tables import device_tables
from tilecompile.runtime.folder.tables import Tables

Json = dict[str, Any]

REPEATS = 7


class Borrowed(Card):
    """A card over the context of an engine's GPU, which goes with the engine."""

    def __init__(self, gpu: Any) -> None:
        self.number, self.name, self._device = gpu.number, gpu.name, gpu._device
        self._gpu = gpu
        self.held: list[int] = []
        self._libraries: list[Any] = []
        self.stream = self._call("cuStreamCreate", 0)

    def _call(self, function: str, *args: Any) -> Any:
        return self._gpu.call(function, *args)

    def put(self, array: Any) -> int:
        self.held.append(super().put(array))
        return self.held[-1]

    def close(self) -> None:
        """Frees the memory and the modules."""
        while self._libraries:
            self._call("cuLibraryUnload", self._libraries.pop())
        self._call("cuStreamDestroy", self.stream)
        while self.held:
            self.free(self.held.pop())


def upload(card: Card, tables: Tables, places: Any, pool: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Puts device 0's tables on the card: a TaskLaunch without its step, and (first row, rows) of each launch."""
    counters = [0] * (1 + int(tables["events"]["device"].max(initial=0)))
    made = device_tables(tables, 0, [0], counters, places, [pool] * len(counters))
    found = levels(tables, 0)
    rows = task_rows(np.concatenate(found), made.runs, TASK_ROW)
    ends = np.cumsum([len(level) for level in found]).tolist()
    launch = record(
        TASK_LAUNCH,
        instructions=card.put(made.instructions),
        operands=card.put(made.operands),
        runs=card.put(made.runs),
        rows=card.put(rows),
        failed=card.put(np.zeros(4, np.uint32)),
        stall_ns=STALL_NS,
    )
    return launch, list(zip([0, *ends[:-1]], [len(level) for level in found], strict=True))


def step_record(context: int) -> np.ndarray:
    """The Step of a context, whose logits are read."""
    step = np.zeros(1, fmt.STEP.dtype)
    step["run"] = step["sequence"] = step["tokens"] = 1
    step["flags"] = fmt.NEEDS_LOGITS
    step["position"], step["context"] = context - 1, context
    return step


def run(folder: Folder, seconds: float, earlier: Json) -> Json:
    """The shard of GLM-5 at each context, in both forms."""
    about = plan_for(folder, "glm5")
    end = time.monotonic() + seconds
    rows: list[Json] = []
    left_out: list[str] = []
    with loaded(folder, about, share=0) as engine:
        backend: Any = engine.backend
        part = backend.node.parts[0]
        with Borrowed(part.gpu) as card:
            buffers = engine.tables["buffers"]
            spare = card.put(np.zeros(int(buffers["bytes"][buffers["arena"] == 0].max()), np.uint8))
            places = backend._places(engine.tables, {0: part}, spare)
            launch, spans = upload(card, engine.tables, places, part.at["weight"])
            kernel = card.kernel(folder.bytes(about["tasks"]), "run_tasks", about["shared"])
            io = engine.manifest.data["io"]
            for predicted in about["predicted"]:
                context = predicted["context"]
                if time.monotonic() > end:
                    left_out.append(f"context {context}")
                    continue
                launch["step"] = card.put(step_record(context))
                card.write(int(places[io["position"]]), np.array([context - 1], np.int32))
                card.write(int(places[io["ids"]]), np.zeros(1, np.int32))
                ms = {name: 1e3 * graph_seconds(card, kernel, launch, spans, late) for name, late in FORMS.items()}
                if card.read(int(launch["failed"][0]), np.zeros(1, np.uint32))[0]:
                    raise RuntimeError("a block waited for its weights for too long")
                best = min(ms.values())
                rows.append({**roof(predicted, best, bandwidth_of(earlier)), **ms, **resident(earlier, context, best)})
    return {
        "passed": not left_out and all(row.get("over_resident", 0) >= 2 for row in rows),
        "launches": len(spans),
        "tasks": sum(count for _, count in spans),
        "steps": rows,
        "left_out": left_out,
        "summary": [
            (
                f"context {row['context']}, {len(spans)} launches",
                f"{row['plain']:.3f} ms, programmatic {row['programmatic']:.3f} ms",
                f"{row['over_resident']:.2f} × the resident kernel" if "over_resident" in row else "",
            )
            for row in rows
        ],
    }


FORMS = {"plain": False, "programmatic": True}


def graph_seconds(card: Card, kernel: Any, launch: Any, spans: list[tuple[int, int]], programmatic: bool) -> float:
    """Time of one step as a graph."""

    def work() -> None:
        for i, (first, count) in enumerate(spans):
            each = launch.copy()
            each["first"] = first
            card.launch(kernel, count, each, programmatic and i > 0)

    graph = card.captured(work)
    return card.seconds(lambda: card.replay(graph), REPEATS)


def resident(earlier: Json, context: int, ms: float) -> Json:
    """The ratio to the time of the resident kernel's step, if that was measured."""
    steps = earlier.get("share", {}).get("steps", ())
    mine = [row["ms"] for row in steps if row["context"] == context and row["latency_ns"] == 0]
    return {"over_resident": ms / mine[0]} if mine else {}
