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
    ins, tiles = s.t["instructions"], s.t["tiles"]
    operator = s.t["operators"][ins["op"]]
    for i in np.flatnonzero(ins["tape_count"] != operator["runs"])[:1].tolist():
        raise VerifyError(f"{s.name(i)} has {ins['tape_count'][i]} weight runs, its operator {operator['runs'][i]}")
    rows, owner = s.rows("tape")
    run = s.t["tape"][rows]
    place = expanded(0, ins["tape_count"])
    of, tile = operator[owner], tiles[run["tile"]]
    bounds = _bounds(ins["tile"][owner], of)
    wrong = (tile["tensor"] != of["weight"]) | (tile["second"] != of["second"]) | (run["slot"] != bounds[0] + place)
    for k, field in enumerate(("begin", "end", "row_begin", "row_end"), 1):
        wrong |= tile[field] != bounds[k]
    for k in np.flatnonzero(wrong)[:1].tolist():
        slot, begin, end, first, last = (int(b[k]) for b in bounds)
        want = [s.weight(int(w)) for w in of[k][["weight", "second"]] if w != fmt.NONE]
        raise VerifyError(
            f"{s.name(int(owner[k]))} reads tile {run['tile'][k]} in slot {run['slot'][k]}, want rows {first}:{last} "
            f"of matrices {begin}:{end} of {' + '.join(want)} in slot {slot + int(place[k])}"
        )


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
    operator = s.t["operators"][ins["op"]]
    body = s.t["bodies"][operator["body"]]
    stated: dict[str, tuple[Any, Any]] = {
        "program": (s.program, operator["program"]),
        "device": (s.t["streams"]["device"][s.stream], operator["device"]),
        "kind": (ins["kind"], operator["kind"]),
        "flags": (ins["flags"], operator["flags"]),
        "first operand": (ins["operand_begin"], operator["operand_begin"]),
        "number of operands": (ins["operand_count"], body["view_count"]),
        "number of regions": (ins["region_count"], body["access_count"]),
    }
    for what, (found, want) in stated.items():
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
    wrong = (ins["tile"] != operator["tile"]) & ~followed[ins["op"], :4]
    for i, k in np.argwhere(wrong)[:1].tolist():
        want = operator["tile"][i, k]
        raise VerifyError(f"coordinate {k} of {s.name(i)} is {ins['tile'][i, k]}, its operator has {want}")


def _operands(s: Subject) -> None:
    """Checks that operands are of the type and the width that their bodies are made for."""
    operators, bodies = s.t["operators"], s.t["bodies"][s.t["operators"]["body"]]
    rows, owner = entries(bodies, "view")
    view = s.t["views"][rows]
    operand = s.t["operands"][operators["operand_begin"][owner].astype(np.int64) + expanded(0, bodies["view_count"])]
    buffer = s.t["buffers"][operand["buffer"]]
    element = np.array([fmt.DTYPE_BYTES[name] for name in fmt.DTYPES])[view["dtype"]].astype(np.uint64)
    wrong = (buffer["dtype"] != view["dtype"]) | ((buffer["cols"] != view["stride"][:, 0]) & (view["rows"] > 1))
    wrong |= (buffer["arena"] != view["arena"]) | (buffer["rows"] < view["rows"]) | (operand["offset"] % element != 0)

    def name(k: int) -> str:
        op = int(owner[k])
        return s.names.operators[op] if op < len(s.names.operators) else f"operator-{op}"

    for k in np.flatnonzero(operand["rows"] != view["rows"])[:1].tolist():
        raise VerifyError(f"an operand of {name(k)} has {operand['rows'][k]} rows, want {view['rows'][k]}")
    for k in np.flatnonzero(wrong)[:1].tolist():
        b = buffer[k]
        raise VerifyError(
            f"an operand of {name(k)} is {operand['offset'][k]} bytes into {s.buffer(int(operand['buffer'][k]))}: "
            f"{_matrix(b['arena'], b['dtype'], b['rows'], b['cols'])}, want one of "
            f"{_matrix(view['arena'][k], view['dtype'][k], view['rows'][k], view['stride'][k, 0])}"
        )


def _matrix(arena: int, dtype: int, rows: int, cols: int) -> str:
    """A matrix in words; kinds of memory and types may be unknown."""
    words = [names[i] if i < len(names) else str(i) for i, names in ((arena, fmt.ARENAS), (dtype, fmt.DTYPES))]
    return f"{words[0]} {words[1]} [{rows}, {cols}]"


def _bounds(tile: Ints, rows: Any) -> list[Ints]:
    """The values of the bounds that rows state, [rows] each; `tile` has the coordinates, [rows, 4]."""
    coordinates = np.concatenate([tile, np.zeros((len(tile), 1), tile.dtype)], axis=1).astype(np.int64)
    row, at = np.arange(len(tile)), np.minimum(rows["at"], 4)
    return [coordinates[row, at[:, k]] * rows["by"][:, k] + rows["add"][:, k] for k in range(at.shape[1])]


def _regions(s: Subject) -> int:
    """Checks every region against the access that it is."""
    ins = s.t["instructions"]
    body = s.t["bodies"][s.t["operators"]["body"][ins["op"]]]
    rows, owner = s.rows("region")
    found = s.t["regions"][rows]
    place = expanded(body["access_begin"], body["access_count"])
    access = s.t["accesses"][place]
    view = s.t["views"][body["view_begin"][owner] + access["operand"]]
    operand = s.t["operands"][ins["operand_begin"][owner].astype(np.int64) + access["operand"]]
    element = np.array([fmt.DTYPE_BYTES[name] for name in fmt.DTYPES])[view["dtype"]]
    bounds = _bounds(ins["tile"][owner], access)
    there = np.ones(len(found), bool)
    item = np.flatnonzero(access["item"] != fmt.NONE)
    one = bounds[2][item] + access["item"][item]
    there[item] = one < bounds[3][item]
    bounds[2][item], bounds[3][item] = one, one + 1
    offset = operand["offset"].astype(np.int64) // element
    stride = view["stride"].astype(np.int64)
    begin = offset + sum(bounds[2 * d] * stride[:, d] for d in (1, 2, 3))
    end = offset + sum((bounds[2 * d + 1] - 1) * stride[:, d] for d in (1, 2, 3)) + 1
    boxes = {"row_begin": bounds[0], "row_end": bounds[1], "col_begin": begin, "col_end": end}
    wrong = (found["buffer"] != operand["buffer"]) | (found["mode"] != access["mode"]) | (bounds[1] > view["rows"])
    for field, values in boxes.items():
        wrong |= found[field] != np.where(there, values, 0)
    for k in np.flatnonzero(wrong)[:1].tolist():
        want = found[k].copy()
        want["buffer"], want["mode"] = operand["buffer"][k], access["mode"][k]
        for field, values in boxes.items():
            want[field] = min(max(0, int(values[k])), fmt.NONE) if there[k] else 0
        does = ["reads", "writes"]
        raise VerifyError(
            f"{s.name(int(owner[k]))} declares that it {does[int(found['mode'][k])]} {s.box(found[k])}, its body "
            f"{does[min(int(want['mode']), 1)]} {s.box(want)}"
        )
    return len(found)


def check_placement(s: Subject) -> None:
    """Checks that workers are numbered through the devices, and that tasks wait and read on their own device."""
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
    at = s.t["buffers"]["device"][s.touched["buffer"]]
    for k in np.flatnonzero((s.touched["mode"] == fmt.READ) & (at != device[s.toucher]))[:1].tolist():
        where = f"on device {at[k]}"
        raise VerifyError(
            f"{s.name(int(s.toucher[k]))} on device {device[s.toucher[k]]} reads {s.box(s.touched[k])} {where}"
        )
    prefetch = s.t["instructions"]["prefetch"]
    for i in np.flatnonzero((prefetch != fmt.NONE) & (prefetch >= len(s.t["tape"])))[:1].tolist():
        raise VerifyError(f"{s.name(i)} prefetches tape entry {prefetch[i]} of {len(s.t['tape'])}")
    for w in np.flatnonzero(s.t["weights"]["programs"].astype(np.int64) >> s.programs)[:1].tolist():
        raise VerifyError(f"{s.weight(w)} is streamed by programs beyond the {s.programs} that there are")
