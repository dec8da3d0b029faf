"""Selections, read off an engine's steps and replayed in another's.

Which positions and experts a step uses is discrete: where two candidates are nearly equal, another number type or
another order of a sum chooses otherwise, and all that follows differs. With the choices of one engine replayed in
another, what still differs is numerical error.

No body knows of it. The operands of operators that read a choice are redirected from the chooser's output to a spare
buffer, which the host fills before each step. The choosers still run, and the events stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.backend import Backend
from tilecompile.runtime.cpu.launch import EXTRA_ALIGN, extra_begin, stalled
from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.folder.rows import span, sums
from tilecompile.runtime.folder.tables import Tables
from tilecompile.runtime.format import ARENAS
from tilecompile.runtime.kernel import Resident
from tilecompile.runtime.replay.choices import Choice, check_selections, choices, positions_of, rows_of
from tilecompile.runtime.replay.selections import Ints, Selections
from tilecompile.runtime.run import Ask, Run

ACTIVATION = ARENAS.index("activation")

Ids = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]


class Loaded(Protocol):
    """What recording and replaying use of `Engine`, which calls them and so isn't imported here."""

    manifest: Manifest
    tables: Tables
    backend: Backend

    def contents(self, buffer: int) -> npt.NDArray[np.uint8]:
        """A copy of the bytes of a buffer, by its number."""

    def beside(self, tables: Tables, extra: Sequence[int]) -> AbstractContextManager[Resident]:
        """A kernel with other tables over the engine's caches and weights."""


@dataclass(frozen=True)
class Replay:
    """Tables in which readers of choices read spare buffers, and where these are stored.

    `extra`: bytes of each device's spares, which follow the activation arena: buffers of that arena with an offset of
    its size, rounded up to EXTRA_ALIGN, or more are in them. `places`: (choice, output, offset within the extra bytes).
    """

    tables: Tables
    extra: tuple[int, ...]
    places: tuple[tuple[Choice, int, int], ...]

    def image(self, selections: Selections, i: int, device: int) -> npt.NDArray[np.uint8]:
        """A device's extra bytes for step i."""
        out = np.zeros(self.extra[device], np.uint8)
        for choice, output, offset in self.places:
            if choice.device != device:
                continue
            if choice.shard is not None:
                row: npt.NDArray[Any] = rows_of(selections.positions[choice.layer][i].astype(np.int32), choice)
            elif output == 0:
                row = selections.experts[choice.layer][i].astype(np.int32)
            else:
                row = selections.weights[choice.layer][i].astype(np.float32)
            out[offset : offset + row.nbytes] = row.view(np.uint8)
        return out


def replayed(manifest: Manifest, tables: Tables, found: Sequence[Choice]) -> Replay:
    """The tables for a replay of all choices. EngineError where nothing reads one."""
    buffers, operands, instructions = tables["buffers"], tables["operands"], tables["instructions"].copy()
    spares: list[np.void] = []
    at = [0] * manifest.devices
    spare_of, writer = np.arange(len(buffers)), np.full(len(buffers), -1, np.int64)
    places = []
    for choice in found:
        for output, buffer in enumerate(choice.buffers):
            spare_of[buffer], writer[buffer] = len(buffers) + len(spares), choice.op
            row = buffers[buffer].copy()
            device = int(row["device"])
            row["arena"], row["offset"] = ACTIVATION, extra_begin(manifest.arenas[device]) + at[device]
            places.append((choice, output, at[device]))
            at[device] += -(-int(row["bytes"]) // EXTRA_ALIGN) * EXTRA_ALIGN
            spares.append(row)
    read: set[int] = set()
    added, end = [operands], len(operands)
    for i in np.flatnonzero(sums(writer[operands["buffer"]] >= 0, instructions, "operand")):
        rows = operands[span(instructions[i], "operand")].copy()
        reads = (writer[rows["buffer"]] >= 0) & (writer[rows["buffer"]] != instructions["op"][i])
        if reads.any():
            read |= set(rows["buffer"][reads].tolist())
            rows["buffer"][reads] = spare_of[rows["buffer"][reads]]
            instructions["operand_begin"][i], end = end, end + len(rows)
            added.append(rows)
    for choice in found:
        if not read.issuperset(choice.buffers):
            raise EngineError(f"{manifest.folder}: no operator reads what {choice.name} selects; compile it again")
    buffers = np.concatenate([buffers, np.array(spares, buffers.dtype)])
    changed = tables | {"buffers": buffers, "operands": np.concatenate(added), "instructions": instructions}
    return Replay(changed, tuple(at), tuple(places))


def record(engine: Loaded, kernel: Resident, ids: Ids, start: int) -> Selections:
    """The selections of an engine's own kernel at the positions from `start` on; the caches hold those before it.

    ids: those of all positions. The engine must have been taken.
    """
    found = choices(engine.manifest, engine.tables)
    count, logits = len(ids) - start, np.zeros((1, engine.manifest.vocab_size), np.float32)
    positions = {c.layer: np.full((count, c.of), -1, np.int32) for c in found if c.shard is not None}
    shards = list({(c.layer, c.shard): c for c in found if c.shard is not None}.values())
    routers = {c.layer: c for c in reversed(found) if c.shard is None}  # that of every device chooses the same
    experts = {layer: np.zeros((count, c.width), np.int32) for layer, c in routers.items()}
    weights = {layer: np.zeros((count, c.width), np.float32) for layer, c in routers.items()}
    for i in range(count):
        feed(engine, kernel, ids[: start + i + 1], logits)
        for layer, choice in routers.items():
            experts[layer][i] = engine.contents(choice.buffers[0]).view(np.int32)
            weights[layer][i] = engine.contents(choice.buffers[1]).view(np.float32)
        chosen: dict[int, list[Ints]] = {layer: [] for layer in positions}
        for choice in shards:
            chosen[choice.layer].append(positions_of(engine.contents(choice.buffers[0]).view(np.int32), choice))
        for layer, lists in chosen.items():
            row = np.sort(np.concatenate(lists))
            positions[layer][i, : len(row)] = row
    return Selections(start, positions, experts, weights)


def prepared(engine: Loaded, selections: Selections, start: int, count: int) -> Replay:
    """The replay's tables. InputError unless the engine could have selected so at `count` positions from `start`."""
    found = choices(engine.manifest, engine.tables)
    check_selections(found, selections, start, count)
    return replayed(engine.manifest, engine.tables, found)


def replay_score(engine: Loaded, replay: Replay, ids: Ids, selections: Selections) -> Logits:
    """Logits [n, vocab] of the positions from `selections.start` on, with the choices given.

    ids: those of all positions. The engine must have been taken; its caches are used.
    """
    start = selections.start
    logits = np.zeros((len(ids) - start, engine.manifest.vocab_size), np.float32)
    with engine.beside(replay.tables, replay.extra) as kernel:
        for i in range(len(logits)):
            for device in range(engine.manifest.devices):
                engine.backend.write_extra(device, replay.image(selections, i, device))
            feed(engine, kernel, ids[: start + i + 1], logits[i : i + 1])
    return logits


def feed(engine: Loaded, kernel: Resident, ids: Ids, logits: Logits) -> None:
    """Runs one request that only feeds the last id, to its end."""
    ask = Ask(ids, len(ids) - 1, 0, logits)
    with Run(kernel, lambda k: stalled(engine.manifest, engine.tables, k), ask) as run:
        run.wait(0)
