"""The operators of an engine that choose, as `graph.json` has them, and what they could have chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.errors import EngineError, InputError
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.folder.operators import NAME, UNREADABLE, read_json
from tilecompile.runtime.folder.tables import Tables
from tilecompile.runtime.format import DTYPES
from tilecompile.runtime.replay.selections import Ints, Selections

PROGRAM = "decode"

POSITIONS, EXPERTS = "positions", "experts"
"""What operators choose, as the ops say (`TileOp.chooses`)."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Choice:
    """An operator that chooses: its number, the buffers of its outputs, and what it chooses from.

    `shard` = (index, count, block): the operator has positions of some blocks of the context only, as rows (see
    `ops/context.py`; (0, 1, 1): all positions). `of`: how many are chosen, of positions by all shards together; of
    experts, how many experts there are.
    """

    name: str
    op: int
    layer: int
    device: int
    buffers: tuple[int, ...]
    width: int
    of: int
    shard: tuple[int, int, int] | None

    @property
    def what(self) -> str:
        """What is chosen, as a field of Selections."""
        return "experts" if self.shard is None else "positions"


def choices(manifest: Manifest, tables: Tables) -> list[Choice]:
    """The choosing operators of a decode step, in program order. EngineError if they can't be read."""
    if manifest.program(PROGRAM)["tokens"] != 1:
        raise EngineError(f"{manifest.folder}: a step has several tokens, selections are of engines with one")
    try:
        found = list(_choices(manifest, tables, read_json(manifest)))
    except UNREADABLE as error:
        raise EngineError(f"{manifest.file(NAME)}: is not a readable graph: {type(error).__name__} {error}") from error
    check_shards(manifest, found)
    return found


def _choices(manifest: Manifest, tables: Tables, graph: Any) -> Iterator[Choice]:
    number = {
        stated["tensor"]: i for i, stated in enumerate(manifest.data["buffers"]) if stated["program"] in (None, PROGRAM)
    }
    op = -1
    for program in graph["programs"]:
        for node in program["operators"]:
            op += 1
            chooses = node.get("chooses")
            if program["name"] != PROGRAM or chooses is None:
                continue
            if chooses not in (POSITIONS, EXPERTS):
                raise ValueError(f"{node['name']} chooses {chooses!r}, want {POSITIONS} or {EXPERTS}")
            outputs = node["outputs"]
            width = int(outputs[0][1][1])
            if any(shape != [1, width] or offset for _, shape, _, offset, _ in outputs):
                raise ValueError(f"{node['name']} selects into a part of a tensor")
            buffers = tuple(number[output[0]] for output in outputs)
            experts = chooses == EXPERTS
            types = [DTYPES.index("i32"), DTYPES.index("f32")][: 2 if experts else 1]
            records = tables["buffers"][list(buffers)]
            if records["dtype"].tolist() != types or (records["bytes"] != 4 * width).any():
                raise ValueError(f"{node['name']} doesn't fit its buffers")
            of = int(node["inputs"][0][1][1]) if experts else int(node["attrs"]["topk"])
            index, count, block = node["attrs"].get("context", (0, 1, 1))
            shard = None if experts else (int(index), int(count), int(block))
            device, layer = int(records["device"][0]), int(node["layer"])
            yield Choice(str(node["name"]), op, layer, device, buffers, width, of, shard)


def check_shards(manifest: Manifest, found: Sequence[Choice]) -> None:
    """EngineError unless the shards of each layer, equally divided, make up the whole context."""
    shards: dict[int, set[tuple[int, int, int]]] = {}
    for choice in found:
        if choice.shard is not None:
            shards.setdefault(choice.layer, set()).add(choice.shard)
    for layer, parts in shards.items():
        _, count, block = next(iter(parts))
        if parts != {(i, count, block) for i in range(count)}:
            raise EngineError(
                f"{manifest.folder}: layer {layer} selects positions on shards {sorted(parts)} of the context, which "
                "don't make up all of it"
            )


def positions_of(rows: Ints, choice: Choice) -> Ints:
    """The positions of a shard's selected rows."""
    index, count, block = choice.shard or (0, 1, 1)
    rows = rows[rows >= 0]
    return ((rows // block * count + index) * block + rows % block).astype(np.int32)


def rows_of(positions: Ints, choice: Choice) -> Ints:
    """The rows [width] of a shard that hold some positions, -1 in the unused entries."""
    index, count, block = choice.shard or (0, 1, 1)
    mine = positions[(positions >= 0) & (positions // block % count == index)]
    out = np.full(choice.width, -1, np.int32)
    out[: len(mine)] = mine // block // count * block + mine % block
    return out


def check_selections(found: Sequence[Choice], selections: Selections, start: int, count: int) -> None:
    """InputError in one line unless the selections are ones that these operators could have made.

    Bodies take what was selected on trust, so every number is checked.
    """
    if selections.start != start:
        raise InputError(f"selections begin at position {selections.start}, start is {start}")
    for field in ("positions", "experts"):
        have, want = set(getattr(selections, field)), {c.layer for c in found if c.what == field}
        if have != want:
            raise InputError(f"selections have {field} of {_layers(have)}, the engine chooses them in {_layers(want)}")
    if set(selections.weights) != set(selections.experts):
        raise InputError("selections have weights of other layers than experts")
    for choice in {c.layer: c for c in found if c.what == "positions"}.values():
        table = selections.positions[choice.layer]
        _check_table(f"selections.positions[{choice.layer}]", table, (count, choice.of), "iu")
        _check_positions(f"selections.positions[{choice.layer}]", table.astype(np.int64), start)
    for choice in {c.layer: c for c in found if c.what == "experts"}.values():
        table = selections.experts[choice.layer]
        _check_table(f"selections.experts[{choice.layer}]", table, (count, choice.width), "iu")
        _check_table(f"selections.weights[{choice.layer}]", selections.weights[choice.layer], table.shape, "f")
        if not np.isfinite(selections.weights[choice.layer]).all():
            raise InputError(f"selections.weights[{choice.layer}] has a number that isn't finite")
        ordered = np.sort(table.astype(np.int64), axis=1)
        wrong = np.flatnonzero(
            (ordered < 0).any(1) | (ordered >= choice.of).any(1) | (np.diff(ordered, axis=1) == 0).any(1)
        )
        if wrong.size:
            raise InputError(
                f"selections.experts[{choice.layer}] at row {wrong[0]} is {table[wrong[0]].tolist()}, "
                f"want different ones from 0 to {choice.of - 1}"
            )


def _layers(layers: set[int]) -> str:
    return f"layers {', '.join(map(str, sorted(layers)))}" if layers else "no layer"


def _check_table(name: str, table: Array, shape: tuple[int, ...], kinds: str) -> None:
    if not isinstance(table, np.ndarray) or table.dtype.kind not in kinds or table.shape != shape:
        what = f"{table.dtype} {list(table.shape)}" if isinstance(table, np.ndarray) else type(table).__name__
        want = "whole numbers" if "i" in kinds else "f32"
        raise InputError(f"{name} is {what}, want {want} {list(shape)}")


def _check_positions(name: str, table: npt.NDArray[np.int64], start: int) -> None:
    """Row i has as many positions up to start + i as can be chosen, ascending, and -1 after them."""
    seen = start + 1 + np.arange(len(table))[:, None]
    used = np.arange(table.shape[1]) < seen
    rises = np.diff(table, axis=1, prepend=-1) > 0
    good = np.where(used, rises & (table < seen), table == -1).all(1)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise InputError(
            f"{name} at row {row} is not a selection of {min(int(seen[row, 0]), table.shape[1])} of the "
            f"{int(seen[row, 0])} positions that it sees: want them ascending, then -1"
        )
