"""verify, part: that instructions, operands, regions and weight runs are what the operators' bodies need them to be.

A body knows its tile's coordinates, its operands and its weight runs. The tables `operators`, `bodies`, `views` and
`accesses` state what it makes of them; here every region and every run is computed again from these statements, so that
none of the fields that say the same can be changed alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilecompile.runtime import format as fmt
from tilecompile.runtime.folder.rows import entries, expanded, owners
from tilecompile.verify.base import Ints, Subject, VerifyError

_INDICES = (("operators", "body", "bodies"), ("operators", "weight", "weights"), ("operators", "second", "weights"))


def check_bodies(s: Subject) -> int:
    """Checks all instructions against the statements about their operators; returns the number of regions."""
    _reserved(s)
    _statements(s)
    _instructions(s)
    _operands(s)
    return _regions(s)


def check_runs(s: Subject) -> None:
    """Checks that each weight run is of the tile that its task's coordinates say."""
    ins, operators, tiles = s.t["instructions"], s.t["operators"], s.t["tiles"]
    runs = operators["runs"][ins["op"]]
    for i in np.flatnonzero(ins["tape_count"] != runs)[:1].tolist():
        raise VerifyError(f"{s.name(i)} has {ins['tape_count'][i]} weight runs, its operator {runs[i]}")
    some = np.flatnonzero(runs)  # what the rest is about: the instructions that have any
    op = ins["op"][some]
    rows, owner = entries(ins[some], "tape")
    tile, slot = (s.t["tape"][field][rows] for field in ("tile", "slot"))
    place = expanded(0, runs[some])
    bounds = _run_bounds(ins["tile"][some], operators, op)
    wrong = slot != bounds[0][owner] + place
    for field, values in zip(("begin", "end", "row_begin", "row_end"), bounds[1:], strict=True):
        wrong |= tiles[field][tile] != values[owner]
    for field, to in (("tensor", "weight"), ("second", "second")):
        wrong |= tiles[field][tile] != operators[to][op][owner]
    for k in np.flatnonzero(wrong)[:1].tolist():
        first, begin, end, row, last = (int(b[owner[k]]) for b in bounds)
        names = [s.weight(int(w)) for w in operators[op[owner[k]]][["weight", "second"]] if w != fmt.NONE]
        raise VerifyError(
            f"{s.name(int(some[owner[k]]))} reads tile {tile[k]} in slot {slot[k]}, want rows {row}:{last} of matrices "
            f"{begin}:{end} of {' + '.join(names)} in slot {first + int(place[k])}"
        )
    _formats(s)


def _formats(s: Subject) -> None:
    """Checks that each operator streams weights in the format that its body takes: tiles of two may be as long."""
    operators, weights = s.t["operators"], s.t["weights"]
    of = np.minimum(operators["weight"], max(0, len(weights) - 1))
    streams = (operators["weight"] != fmt.NONE) & bool(len(weights))
    stored = np.where(streams, weights["dtype"][of] if len(weights) else 0, fmt.NONE)
    taken = s.t["bodies"]["format"][operators["body"]]
    for i in np.flatnonzero(stored != taken)[:1].tolist():
        name = s.names.operators[i]
        raise VerifyError(f"{name} streams weights in format {_format(stored[i])}, its body takes {_format(taken[i])}")


def _format(code: int) -> str:
    return "none" if code == fmt.NONE else str(code)


def _run_bounds(tile: Ints, operators: Any, op: Ints) -> list[Ints]:
    """The values of the bounds that operators state for tasks with tile coordinates [tasks, 4]: an array each."""
    coordinates = np.concatenate([tile, np.zeros((len(tile), 1), tile.dtype)], axis=1).astype(np.int64)
    row, at = np.arange(len(tile)), np.minimum(operators["at"], 4)
    return [coordinates[row, at[op, k]] * operators["by"][op, k] + operators["add"][op, k] for k in range(at.shape[1])]


def _reserved(s: Subject) -> None:
    """Checks that reserved fields are zero."""
    for name, table in s.t.items():
        if "reserved" in (table.dtype.names or ()):
            for i in np.flatnonzero(table["reserved"].reshape(len(table), -1).any(axis=1))[:1].tolist():
                raise VerifyError(f"{name} {i} has {table['reserved'][i].tolist()} in a reserved field, want 0")


def _statements(s: Subject) -> None:
    """Checks that the statements refer to each other, one for each operator that has a name."""
    t = s.t
    if len(t["operators"]) != len(s.names.operators):
        raise VerifyError(f"there are {len(t['operators'])} rows of operators, want {len(s.names.operators)}")
    for i in np.flatnonzero(t["instructions"]["op"] >= len(t["operators"]))[:1].tolist():
        raise VerifyError(f"instruction {i} names operator {t['instructions']['op'][i]} of {len(t['operators'])}")
    for table, field, target in _INDICES:
        values = t[table][field]
        for i in np.flatnonzero((values >= len(t[target])) & ((values != fmt.NONE) | (field == "body")))[:1].tolist():
            raise VerifyError(f"{table} {i} names {target} {values[i]} of {len(t[target])}")
    for field, target in (("view", "views"), ("access", "accesses")):
        ends = t["bodies"][f"{field}_begin"].astype(np.int64) + t["bodies"][f"{field}_count"]
        for i in np.flatnonzero(ends > len(t[target]))[:1].tolist():
            raise VerifyError(f"bodies {i}: its {target} end at {ends[i]} of {len(t[target])}")
    for i in np.flatnonzero(t["views"]["dtype"] >= len(fmt.DTYPES))[:1].tolist():
        raise VerifyError(f"views {i} has dtype {t['views']['dtype'][i]}")
    counts = t["bodies"]["view_count"][t["operators"]["body"]]
    ends = t["operators"]["operand_begin"].astype(np.int64) + counts
    for i in np.flatnonzero(ends > len(t["operands"]))[:1].tolist():
        raise VerifyError(f"operators {i}: its operands end at {ends[i]} of {len(t['operands'])}")
    access, body = entries(t["bodies"], "access")
    operand = t["accesses"]["operand"][access]
    for k in np.flatnonzero(operand >= t["bodies"]["view_count"][body])[:1].tolist():
        raise VerifyError(f"accesses {access[k]} is of operand {operand[k]}, its body {body[k]} has no such view")
    touched = np.unique(np.stack([body, operand.astype(np.int64)]), axis=1)
    counts = np.bincount(touched[0], minlength=len(t["bodies"]))
    for i in np.flatnonzero(counts != t["bodies"]["view_count"])[:1].tolist():
        raise VerifyError(f"bodies {i} touches {counts[i]} of its {t['bodies']['view_count'][i]} operands")


def _instructions(s: Subject) -> None:
    """Checks that instructions are tasks of their operators."""
    ins = s.t["instructions"]
    operators, op = s.t["operators"], ins["op"]
    bodies = s.t["bodies"][operators["body"]]
    stated: dict[str, tuple[Any, Any]] = {
        "program": (s.program, operators["program"]),
        "device": (s.t["streams"]["device"][s.stream], operators["device"]),
        "kind": (ins["kind"], operators["kind"]),
        "flags": (ins["flags"], operators["flags"]),
        "first operand": (ins["operand_begin"], operators["operand_begin"]),
        "number of operands": (ins["operand_count"], bodies["view_count"]),
        "number of regions": (ins["region_count"], bodies["access_count"]),
    }
    for what, (found, of_operator) in stated.items():
        want = of_operator[op]
        for i in np.flatnonzero(found != want)[:1].tolist():
            raise VerifyError(f"the {what} of {s.name(i)} is {found[i]}, its operator has {want[i]}")
    # Coordinates that no bound follows are the same for all tasks of an operator.
    used = np.zeros((len(s.t["bodies"]), 5), bool)
    access, owner = entries(s.t["bodies"], "access")
    at = np.minimum(s.t["accesses"]["at"][access], 4)
    used[np.repeat(owner, at.shape[1]), at.ravel()] = True
    followed = used[s.t["operators"]["body"]]
    at = np.minimum(s.t["operators"]["at"], 4)
    followed[owners(np.full(len(at), at.shape[1])), at.ravel()] = True
    wrong = (ins["tile"] != operators["tile"][op]) & ~followed[op, :4]
    for i, k in np.argwhere(wrong)[:1].tolist():
        want = operators["tile"][op[i], k]
        raise VerifyError(f"coordinate {k} of {s.name(i)} is {ins['tile'][i, k]}, its operator has {want}")


def _operands(s: Subject) -> None:
    """Checks that operands are of the type and the width that bodies are made for, and that what is read is at home."""
    operators, bodies = s.t["operators"], s.t["bodies"][s.t["operators"]["body"]]
    rows, owner = entries(bodies, "view")
    view = s.t["views"][rows]
    operand = s.t["operands"][operators["operand_begin"][owner].astype(np.int64) + expanded(0, bodies["view_count"])]
    buffer = s.t["buffers"][operand["buffer"]]
    element = np.array([fmt.DTYPE_BYTES[name] for name in fmt.DTYPES])[view["dtype"]].astype(np.uint64)
    wrong = (buffer["dtype"] != view["dtype"]) | ((buffer["cols"] != view["stride"][:, 0]) & (view["rows"] > 1))
    wrong |= (buffer["arena"] != view["arena"]) | (buffer["rows"] < view["rows"]) | (operand["offset"] % element != 0)
    for k in np.flatnonzero(operand["rows"] != view["rows"])[:1].tolist():
        name = _operator(s, int(owner[k]))
        raise VerifyError(f"an operand of {name} has {operand['rows'][k]} rows, want {view['rows'][k]}")
    for k in np.flatnonzero(wrong)[:1].tolist():
        b, name = buffer[k], _operator(s, int(owner[k]))
        raise VerifyError(
            f"an operand of {name} is {operand['offset'][k]} bytes into {s.buffer(int(operand['buffer'][k]))}: "
            f"{_matrix(b['arena'], b['dtype'], b['rows'], b['cols'])}, want one of "
            f"{_matrix(view['arena'][k], view['dtype'][k], view['rows'][k], view['stride'][k, 0])}"
        )

    access, body = entries(s.t["bodies"], "access")
    read = np.zeros((len(s.t["bodies"]), int(s.t["bodies"]["view_count"].max(initial=0)) + 1), bool)
    reads = s.t["accesses"]["mode"][access] == fmt.READ
    read[body[reads], s.t["accesses"]["operand"][access][reads]] = True
    away = read[operators["body"][owner], expanded(0, bodies["view_count"])]
    away &= buffer["device"] != operators["device"][owner]
    for k in np.flatnonzero(away)[:1].tolist():
        raise VerifyError(
            f"{_operator(s, int(owner[k]))} on device {operators['device'][owner[k]]} reads "
            f"{s.buffer(int(operand['buffer'][k]))} on device {buffer['device'][k]}"
        )


def _operator(s: Subject, op: int) -> str:
    return s.names.operators[op] if op < len(s.names.operators) else f"operator-{op}"


def _matrix(arena: int, dtype: int, rows: int, cols: int) -> str:
    """A matrix in words; kinds of memory and types may be unknown."""
    words = [names[i] if i < len(names) else str(i) for i, names in ((arena, fmt.ARENAS), (dtype, fmt.DTYPES))]
    return f"{words[0]} {words[1]} [{rows}, {cols}]"


def _regions(s: Subject) -> int:
    """Checks every region against the access that it is, body by body; returns their number."""
    ins, operands, t = s.t["instructions"], s.t["operands"], s.t
    body = t["operators"]["body"][ins["op"]]
    element = np.array([fmt.DTYPE_BYTES[name] for name in fmt.DTYPES])[t["buffers"]["dtype"][operands["buffer"]]]
    offset = operands["offset"].astype(np.int64) // element
    order = np.argsort(body, kind="stable")
    found = 0
    for number, members in enumerate(np.split(order, np.searchsorted(body[order], np.arange(1, len(t["bodies"]))))):
        if not len(members):
            continue
        about, tile = t["bodies"][number], ins["tile"][members].astype(np.int64)
        first, operand = (ins[field][members].astype(np.int64) for field in ("region_begin", "operand_begin"))
        for j in range(int(about["access_count"])):
            access = t["accesses"][int(about["access_begin"]) + j]
            view = t["views"][int(about["view_begin"]) + int(access["operand"])]
            of, region = operand + int(access["operand"]), t["regions"][first + j]
            box = _box(access, view, tile, offset[of])
            wrong = (region["buffer"] != operands["buffer"][of]) | (region["mode"] != access["mode"])
            wrong |= box[1] > view["rows"]
            for field, values in zip(("row_begin", "row_end", "col_begin", "col_end"), box, strict=True):
                wrong |= region[field] != values
            for k in np.flatnonzero(wrong)[:1].tolist():
                bounds = [min(max(0, int(np.broadcast_to(values, len(members))[k])), fmt.NONE) for values in box]
                want = np.array((operands["buffer"][of[k]], access["mode"], *bounds), t["regions"].dtype)
                does = [("reads", "writes")[min(int(mode), 1)] for mode in (region["mode"][k], access["mode"])]
                raise VerifyError(
                    f"{s.name(int(members[k]))} declares that it {does[0]} {s.box(region[k])}, its body {does[1]} "
                    f"{s.box(want)}"
                )
        found += len(members) * int(about["access_count"])
    return found


def _box(access: Any, view: Any, tile: Ints, offset: Ints) -> list[Any]:
    """The region of an access for tasks with tile coordinates [tasks, 4], of operands at offsets (in elements).

    Rows and columns, begin and end of each: numbers, or an array with one for each task.
    """
    bounds: list[Any] = [
        int(add) if at >= tile.shape[1] else tile[:, int(at)] * int(by) + int(add)
        for at, by, add in zip(access["at"], access["by"], access["add"], strict=True)
    ]
    there: Any = True
    if access["item"] != fmt.NONE:
        item = bounds[2] + int(access["item"])
        there, bounds[2], bounds[3] = item < bounds[3], item, item + 1
    stride = view["stride"].tolist()
    begin, end = (offset + sum((bounds[2 * d + i] - i) * stride[d] for d in (1, 2, 3)) + i for i in (0, 1))
    box = [bounds[0], bounds[1], begin, end]
    return box if there is True else [np.where(there, values, 0) for values in box]


def check_placement(s: Subject) -> None:
    """Checks that workers are numbered through the devices, and that tasks wait on their own device."""
    streams = s.t["streams"]
    first = streams[streams["agent"] == 0]
    workers, devices = int(streams["worker"].max()) + 1, int(streams["device"].max()) + 1
    found = np.zeros((s.programs, workers), np.int64)
    np.add.at(found, (first["program"], first["worker"]), 1)
    for program, worker in np.argwhere(found != 1)[:1].tolist():
        raise VerifyError(f"worker {worker} of {workers} has no stream in program {program}")
    of_worker = streams["worker"].astype(np.int64) * devices // workers
    for i in np.flatnonzero((of_worker != streams["device"]) | (workers % devices != 0))[:1].tolist():
        raise VerifyError(
            f"stream {i} of worker {streams['worker'][i]} is on device {streams['device'][i]}, want {of_worker[i]}: "
            f"{devices} devices share {workers} workers, first to last"
        )
    device, events = streams["device"][s.stream], s.t["events"]["device"]
    rows, owner = s.rows("wait")
    event = s.t["waits"]["event"][rows]
    for k in np.flatnonzero(events[event] != device[owner])[:1].tolist():
        where = f"on device {events[event[k]]}"
        raise VerifyError(f"{s.name(int(owner[k]))} on device {device[owner[k]]} waits for event {event[k]} {where}")
    rows, owner = s.rows("notify")
    notify = s.t["notifies"][rows]
    scope = events[notify["event"]] != device[owner]
    for k in np.flatnonzero(notify["scope"] != scope)[:1].tolist():
        raise VerifyError(
            f"{s.name(int(owner[k]))} notifies event {notify['event'][k]} with scope {notify['scope'][k]}, want "
            f"{int(scope[k])}"
        )
    prefetch = s.t["instructions"]["prefetch"]
    for i in np.flatnonzero((prefetch != fmt.NONE) & (prefetch >= len(s.t["tape"])))[:1].tolist():
        raise VerifyError(f"{s.name(i)} prefetches tape entry {prefetch[i]} of {len(s.t['tape'])}")
    for w in np.flatnonzero(s.t["weights"]["programs"].astype(np.int64) >> s.programs)[:1].tolist():
        raise VerifyError(f"{s.weight(w)} is streamed by programs beyond the {s.programs} that there are")
