"""Part `ops`: each op's body, task by task on the GPU, against its reference in torch, in float64 on the CPU."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import torch

from gpu.cases import ALL, Trial, trials
from gpu.folder import Folder
from gpu.records import STALL_NS, TASK_LAUNCH, TASK_ROW, record
from support.cuda_bodies import Bench
from support.opharness import as_view, expected, poison, same_bits
from tilecompile.ir.node import OpNode
from tilecompile.ops.base import REGISTRY
from tilecompile.ops.testing import Case
from tilecompile.runtime import format as fmt

TOLERANCE = {"fp8": 1e-3, "bf16": 4e-3, None: 1e-4}
"""Largest error over the output's RMS, by type of the weights; selections, ids and copies must be equal."""

SECONDS = 150
"""After which no further op is begun."""

Json = dict[str, Any]


def bits(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's memory as bytes."""
    return tensor.contiguous().view(torch.uint8).numpy().reshape(-1) if tensor.numel() else np.zeros(0, np.uint8)


class Placed:
    """A case in a card's memory: tensors by name, outputs full of what no result contains."""

    def __init__(self, card: Any, case: Case) -> None:
        self.card, self.case = card, case
        node = case.node
        self.before = {**case.tensors, **{v.tensor: poison(v) for v in node.outputs}}
        names = dict.fromkeys(v.tensor for v in node.operands)
        self.at = {name: card.put(bits(self.before[name])) for name in names}
        sizes = [v.offset * fmt.DTYPE_BYTES[v.dtype] for v in node.operands]
        self.operands = np.array(
            [self.at[v.tensor] + size for v, size in zip(node.operands, sizes, strict=True)], np.uint64
        )

    def after(self) -> dict[str, torch.Tensor]:
        """The tensors as they are now."""
        out = {}
        for name, address in self.at.items():
            before = self.before[name]
            data = torch.from_numpy(self.card.read(address, bits(before)))
            out[name] = data.view(before.dtype).reshape(before.shape)
        return out

    def free(self) -> None:
        """Frees the memory."""
        for address in self.at.values():
            self.card.free(address)


def run_trial(card: Any, kernel: Any, kind: int, trial: Trial) -> Json:
    """Runs a trial's tasks in one launch; returns `tasks`, `error` over RMS, `tolerance`, and what is `wrong`, or None.

    `kernel` is a `run_tasks` that has the body as number `kind`.
    """
    node = trial.case.node
    tiling = REGISTRY[node.op].tile(node, trial.parts)
    bench = Bench(trial.case, trial.parts, slice(trial.most)) if trial.streams else None
    tasks = list(range(len(tiling.coords)))[: trial.most]
    placed = Placed(card, trial.case)
    held: list[int] = []

    def put(array: np.ndarray) -> int:
        held.append(card.put(array))
        return held[-1]

    runs, rows, instructions = [], [], np.zeros(len(tasks), fmt.INSTRUCTION.dtype)
    tiles: dict[Any, tuple[int, int]] = {}
    for i, task in enumerate(tasks):
        begin = len(runs)
        for tile, slot in tiling.weights[task]:
            if tile not in tiles:
                assert bench is not None
                each = [bench.packed(tile, m) for m in (range(tile.begin, tile.end) if tile.gathered else (0,))]
                tiles[tile] = put(bits(torch.cat(each))), len(each[0])
            runs.append(_run(tiles[tile], tile, slot, placed, node))
        rows.append((i, begin, len(runs), 0))
        instructions[i]["kind"], instructions[i]["tile"] = kind, tiling.coords[task]
    step = np.zeros(1, fmt.STEP.dtype)
    step["sequence"], step["run"], step["tokens"], step["flags"] = 1, 1, fmt.MAX_TOKENS, fmt.NEEDS_LOGITS
    failed = put(np.zeros(4, np.uint32))
    launch = record(
        TASK_LAUNCH,
        instructions=put(instructions),
        operands=put(placed.operands),
        runs=put(np.array(runs or [0], fmt.DEVICE_RUN.dtype)),
        rows=put(np.array(rows, TASK_ROW)),
        step=put(step),
        failed=failed,
        stall_ns=STALL_NS,
    )
    try:
        card.launch(kernel, len(tasks), launch)
        card.wait()
        late = card.read(failed, np.zeros(1, np.uint32))[0]
        after = placed.after()
    finally:
        for address in held:
            card.free(address)
        placed.free()
    found = {"case": node.name, "op": node.op, "tasks": len(tasks)}
    if late:
        return {**found, "error": None, "tolerance": None, "wrong": "a block waited for its weights for too long"}
    return {**found, **(stream_errors(bench, after) if bench else tile_errors(trial.case, after))}


def _run(at: tuple[int, int], tile: Any, slot: int, placed: Placed, node: OpNode) -> Any:
    """The DeviceRun of a tile: of expert 0, if the slot's expert chooses."""
    out = np.zeros((), fmt.DEVICE_RUN.dtype)
    out["source"], out["bytes"], out["hint"] = at[0], at[1], fmt.NONE
    if tile.gathered:
        experts = next(i for i, v in enumerate(node.inputs) if v.dtype == "i32")
        out["source"] = at[0] - tile.begin * at[1]
        out["stride"], out["expert"] = at[1], placed.operands[experts] + np.uint64(4 * slot)
    return out


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest error over the RMS of the expected values; NaN where a value is NaN."""
    if not want.numel():
        return 0.0
    wide = want.double()
    return float((got.double() - wide).abs().max() / (wide.pow(2).mean().sqrt() + 1e-30))


def stream_errors(bench: Bench, after: dict[str, torch.Tensor]) -> Json:
    """The outputs of an op that streams weights against float64 on the same weights, all peers' copies alike."""
    got, *peers = (after[v.tensor] for v in bench.node.outputs)
    written, tolerance = bench.written(), TOLERANCE[bench.dtype]
    found = error(got[written], bench.wanted()[0][written])
    wrong = None
    if not found <= tolerance:
        wrong = "the result is off"
    elif not got[~written].isnan().all():
        wrong = "elements are written that don't belong to it"
    elif not all(same_bits(peer, got) for peer in peers):
        wrong = "a peer has other values"
    return {"error": found, "tolerance": tolerance, "wrong": wrong}


def tile_errors(case: Case, after: dict[str, torch.Tensor]) -> Json:
    """The outputs of an op without weights, and all tensors, which must be as they were where the op leaves them."""
    node = case.node
    fresh = dataclasses.replace(case, tensors={k: v.clone() for k, v in case.tensors.items()})
    want = expected(fresh)
    exact = not case.tolerance
    if not exact and node.op != "rope_angles":  # whose angles are rounded to f32 by definition
        wide = {k: v.double() if v.dtype == torch.float32 else v.clone() for k, v in case.tensors.items()}
        finer = expected(dataclasses.replace(case, tensors=wide))
        want = [f if f.is_floating_point() else w for f, w in zip(finer, want, strict=True)]
    tolerance, most, wrong = TOLERANCE[None] if not exact else 0.0, 0.0, None
    for i, (view, w) in enumerate(zip(node.outputs, want, strict=True)):
        g = as_view(after[view.tensor], view)
        if i == 0 and case.written is not None:
            if not g[~case.written].isnan().all():
                wrong = "elements are written that don't belong to it"
            g, w = g[case.written], w[case.written]
        if w.is_floating_point() and not exact:
            most = max(most, error(g, w)) if most == most else most
        elif not torch.equal(g, w.to(g.dtype)):
            wrong = f"{view.tensor} differs"
    for name, before in fresh.tensors.items():  # caches that the reference has written
        changed = not same_bits(before, case.tensors[name])
        if not same_bits(after[name], before) and not (changed and not exact):
            wrong = f"{name} differs"
        elif changed:
            most = max(most, error(after[name], before))
    if wrong is None and not most <= tolerance:
        wrong = "the result is off"
    return {"error": most, "tolerance": tolerance, "wrong": wrong}


def run(folder: Folder, seconds: float, earlier: Json) -> Json:
    """All ops' trials with fresh numbers. `cases` has each; `left_out` names the ops that there was no time for."""
    from gpu.card import Card

    seed = int(time.time()) % (1 << 30)
    cases: list[Json] = []
    left_out: list[str] = []
    end = time.monotonic() + min(seconds, SECONDS)
    with Card() as card:
        for op in ALL:
            about = folder.index["ops"][op]
            if time.monotonic() > end:
                left_out.append(op)
                continue
            kernel = card.kernel(folder.bytes(about["cubin"]), "run_tasks", about["shared"])
            for trial in trials(op, seed):
                cases.append(run_trial(card, kernel, about["kinds"][trial.case.node.name], trial))
    wrong = [c for c in cases if c["wrong"]]
    return {
        "passed": not wrong and not left_out,
        "seed": seed,
        "reference": "the ops' references in torch, float64, on the CPU",
        "cases": cases,
        "left_out": left_out,
        "summary": [
            (op, f"{len(mine)} cases, {sum(c['tasks'] for c in mine)} tasks", _worst(mine))
            for op in ALL
            if (mine := [c for c in cases if c["op"] == op])
        ],
    }


def _worst(cases: list[Json]) -> str:
    """The worst of some cases, in words."""
    if wrong := [c for c in cases if c["wrong"]]:
        return f"{wrong[0]['case']}: {wrong[0]['wrong']} ({wrong[0]['error']})"
    return f"error {max(c['error'] for c in cases):.1e} of RMS at most"
