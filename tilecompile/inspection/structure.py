"""What a step program is made of, read off an engine's tables: operators over all devices, and the events between them.

The shards of an operator on several devices are one operator here, and so are all pushes of a tensor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.errors import InputError
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.folder.operators import Operator as Stated
from tilecompile.runtime.folder.operators import Shared, read_operators
from tilecompile.runtime.folder.rows import entries, expanded, owners, sums
from tilecompile.runtime.folder.tables import Tables
from tilecompile.runtime.format import COMMIT_KIND, DTYPE_BYTES, DTYPES
from tilecompile.runtime.names import ranges, within_layer

Ints = npt.NDArray[np.int64]
BOUNDS = ("row_begin", "row_end", "col_begin", "col_end")


@dataclass
class Operator:
    """An operator on all its devices; `tasks`, `weight_bytes` and `pushed_bytes` of a step are by device.

    `origin` and `role` are those of `OpNode`.
    """

    name: str
    op: str
    layer: int | None
    origin: str
    role: str
    tasks: dict[int, int] = field(default_factory=dict)
    weight_bytes: dict[int, int] = field(default_factory=dict)
    pushed_bytes: dict[int, int] = field(default_factory=dict)

    @property
    def devices(self) -> tuple[int, ...]:
        """Where it runs."""
        return tuple(sorted(self.tasks))

    @property
    def local(self) -> str:
        """Its name within its layer."""
        return within_layer(self.name, self.layer)


@dataclass
class Edge:
    """Events that one operator notifies and another waits for: their tensors, elements, wait counts, and all waits.

    `remote` is the number of elements that tasks of another device notify.
    """

    producer: int
    consumer: int
    tensors: int
    elements: int
    least: int
    most: int
    waits: int
    remote: int


@dataclass
class Structure:
    """The operators of a program in their order, and the edges between them, by their places in the list.

    `tasks` are the instructions of the program, `of_task` the place of each one's operator, `tables` the engine's.
    """

    operators: list[Operator]
    edges: list[Edge]
    tasks: npt.NDArray[np.void]
    of_task: Ints
    tables: Tables

    @property
    def sink(self) -> int:
        """The place of the sink: the operator whose tasks the kernel's loop runs."""
        return int(self.of_task[np.flatnonzero(self.tasks["kind"] == COMMIT_KIND)[0]])

    def read_from(self, members: Iterable[int]) -> set[tuple[int, int]]:
        """Pairs (writer, reader) of operators, the reader one of `members`, where a task reads what another wrote."""
        regions = self.tables["regions"]
        index, owner = entries(self.tasks, "region")
        group, mode, buffer = self.of_task[owner], regions["mode"][index], regions["buffer"][index]
        reading = (mode == 0) & np.isin(group, list(members))
        writing = (mode == 1) & np.isin(buffer, np.unique(buffer[reading]))
        bounds = np.stack([regions[name][index].astype(np.int64) for name in BOUNDS])
        boxes = {side: _by_buffer(group, buffer, bounds, mask) for side, mask in ((0, reading), (1, writing))}
        found = set()
        for number, read in boxes[0].items():
            wrote = boxes[1].get(number)
            if wrote is None:
                continue
            rows = (read[1][:, None] < wrote[2]) & (wrote[1] < read[2][:, None])
            cols = (read[3][:, None] < wrote[4]) & (wrote[3] < read[4][:, None])
            reader, writer = np.nonzero(rows & cols)
            found |= set(zip(wrote[0][writer].tolist(), read[0][reader].tolist(), strict=True))
        return {(writer, reader) for writer, reader in found if writer != reader}

    def layers(self) -> dict[int, list[int]]:
        """The operators of each layer."""
        found: dict[int, list[int]] = defaultdict(list)
        for i, operator in enumerate(self.operators):
            if operator.layer is not None:
                found[operator.layer].append(i)
        return dict(sorted(found.items()))

    def layer(self, requested: int | None) -> int:
        """The layer to show: `requested`, else the first of those with the most operators. InputError if absent."""
        layers = self.layers()
        if requested is None and layers:
            return max(layers, key=lambda number: (len(layers[number]), -number))
        if requested not in layers:
            raise InputError(f"--layer is {requested}, the program has the layers {ranges(list(layers))}")
        return int(requested)


def _by_buffer(group: Ints, buffer: Ints, bounds: Ints, mask: npt.NDArray[np.bool_]) -> dict[int, Ints]:
    """The distinct boxes of each buffer, int64 [5, boxes]: operator, then the bounds."""
    known = np.unique(np.concatenate([np.stack([buffer, group]), bounds])[:, mask].astype(np.int64), axis=1)
    numbers, first = np.unique(known[0], return_index=True)
    return dict(zip(numbers.tolist(), np.split(known[1:], first[1:], axis=1), strict=True))


def structure(manifest: Manifest, tables: Tables, program: int) -> Structure:
    """The structure of a step program."""
    instructions, streams = tables["instructions"], tables["streams"]
    mine = streams[(streams["program"] == program) & (streams["agent"] == 0)]
    count = mine["end"].astype(np.int64) - mine["begin"]
    index, device = expanded(mine["begin"], count), mine["device"].astype(np.int64)[owners(count)]
    rows = instructions[index]
    operators, of_op = _operators(manifest, rows)
    groups = of_op[rows["op"]]
    streamed = sums(tables["tape"]["bytes"].astype(np.int64), rows, "tape")
    pushed = _pushed(tables, rows, device)
    keys, of_task = np.unique(np.stack([groups, device]), axis=1, return_inverse=True)
    of_task = of_task.reshape(-1)
    for what, values in (("tasks", np.ones_like(groups)), ("weight_bytes", streamed), ("pushed_bytes", pushed)):
        total = np.zeros(keys.shape[1], np.int64)
        np.add.at(total, of_task, values)
        for (group, where), value in zip(keys.T.tolist(), total.tolist(), strict=True):
            getattr(operators[group], what)[where] = value
    return Structure(operators, _edges(tables, rows, groups, device), rows, groups, tables)


def _operators(manifest: Manifest, rows: npt.NDArray[np.void]) -> tuple[list[Operator], Ints]:
    """The operators in their order, and the place of each value of `Instruction.op` among them, -1 for none."""
    stated = read_operators(manifest)
    found: dict[Shared, int] = {}
    operators: list[Operator] = []
    of_op = np.full(len(stated), -1, np.int64)
    for number in np.unique(rows["op"]).tolist():
        one = stated[number]
        if one.shared not in found:
            found[one.shared] = len(operators)
            operators.append(Operator(shown_name(one), one.op, one.layer, one.undivided, one.role))
        of_op[number] = found[one.shared]
    return operators, of_op


def shown_name(operator: Stated) -> str:
    """What an operator and its counterparts on other devices are called together, for people."""
    if operator.tensor:
        return operator.tensor.removeprefix("%") + ".push"
    return operator.name.removesuffix(f"@{operator.device}")


def _pushed(tables: Tables, rows: npt.NDArray[np.void], device: Ints) -> Ints:
    """Bytes that each task writes on other devices than its own, `device`."""
    regions, buffers = tables["regions"], tables["buffers"]
    size = (regions["row_end"].astype(np.int64) - regions["row_begin"]) * (
        regions["col_end"].astype(np.int64) - regions["col_begin"]
    )
    element = np.array([DTYPE_BYTES[d] for d in DTYPES], np.int64)[buffers["dtype"][regions["buffer"]]]
    index, owner = entries(rows, "region")
    away = np.zeros(len(regions), np.bool_)
    away[index] = buffers["device"][regions["buffer"][index]] != device[owner]
    return sums(size * element * (away & (regions["mode"] == 1)), rows, "region")


def _edges(tables: Tables, rows: npt.NDArray[np.void], groups: Ints, device: Ints) -> list[Edge]:
    """The edges, by producer and consumer."""
    notified, by = entries(rows, "notify")
    event_of_notify = tables["notifies"]["event"][notified]
    producer = np.full(len(tables["events"]), -1, np.int64)
    producer[event_of_notify] = groups[by]
    remote = np.zeros(len(tables["events"]), np.bool_)
    remote[event_of_notify] = device[by] != tables["events"]["device"][event_of_notify]
    waited, waiting = entries(rows, "wait")
    event = tables["waits"]["event"][waited].astype(np.int64)
    pairs, first = np.unique(np.stack([producer[event], groups[waiting]]), axis=1, return_inverse=True)
    first = first.reshape(-1)
    order = np.argsort(first, kind="stable")
    edges = []
    for (a, b), of_pair in zip(
        pairs.T.tolist(), np.split(event[order], np.cumsum(np.bincount(first))[:-1]), strict=True
    ):
        elements = np.unique(of_pair)
        counts = tables["events"]["wait_count"][elements]
        tensors = len(np.unique(tables["events"]["tensor"][elements]))
        least, most, far = int(counts.min()), int(counts.max()), int(remote[elements].sum())
        edges.append(Edge(a, b, tensors, len(elements), least, most, len(of_pair), far))
    return edges
