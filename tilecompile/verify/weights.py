"""verify, part: the weights that the tapes read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tilecompile.runtime import format as fmt
from tilecompile.runtime.weight_formats import FORMATS, format_of
from tilecompile.verify.base import Bools, Ints, Subject, VerifyError


@dataclass(frozen=True)
class Coverage:
    """The streamed weights of one program: read whole, read by expert slot, and not read; and the number of slots."""

    read: tuple[int, ...]
    gathered: tuple[int, ...]
    unread: tuple[int, ...]
    slots: int
    runs: int


def check_tiles(s: Subject) -> None:
    """Checks that each tile is a part of its tensors, and as long as that part is in panels."""
    weights, tiles = s.t["weights"], s.t["tiles"]
    codes = [stored.code for stored in FORMATS.values()]
    for i in np.flatnonzero(~np.isin(weights["dtype"], codes))[:1].tolist():
        raise VerifyError(f"{s.weight(i)} has dtype {weights['dtype'][i]}")
    if not len(tiles):
        return
    fields = {f: tiles[f].astype(np.int64) for f in tiles.dtype.names or ()}
    alone = fields["second"] == fmt.NONE
    w, other = weights[fields["tensor"]], weights[np.where(alone, fields["tensor"], fields["second"])]
    shape = {f: w[f].astype(np.int64) for f in ("matrices", "rows", "cols")}

    def found(wrong: Bools) -> list[tuple[int, str]]:
        """The first tile with a fault, and its name."""
        return [
            (i, f"tile {i} of {' + '.join(s.weight(int(x)) for x in tiles[i][['tensor', 'second']] if x != fmt.NONE)}")
            for i in np.flatnonzero(wrong)[:1].tolist()
        ]

    for _, name in found(~alone & ((fields["second"] == fields["tensor"]) | (w != other))):
        raise VerifyError(f"{name}: the tensors are not two of one shape and type")
    outside = (fields["begin"] >= fields["end"]) | (fields["end"] > shape["matrices"])
    outside |= (fields["row_begin"] >= fields["row_end"]) | (fields["row_end"] > shape["rows"])
    for i, name in found(outside):
        t = tiles[i]
        part = f"rows {t['row_begin']}:{t['row_end']} of matrices {t['begin']}:{t['end']}"
        raise VerifyError(f"{name} holds {part}, the tensor has {w['rows'][i]} rows in {w['matrices'][i]} matrices")
    ends = fields["col_begin"] + fields["cols"]
    for i, name in found((fields["cols"] <= 0) | (ends > shape["cols"])):
        raise VerifyError(f"{name} has columns {tiles['col_begin'][i]}:{ends[i]}, the tensor {w['cols'][i]}")
    matrices, gathered = fields["end"] - fields["begin"], fields["gathered"] != 0
    copies, stored = np.where(gathered, matrices, 1), np.where(gathered, 1, matrices)
    for i, name in found((fields["layout"] >= len(fmt.LAYOUTS)) | (fields["layout"] != fields["layout"][0])):
        raise VerifyError(f"{name} has layout {tiles['layout'][i]}, the first {tiles['layout'][0]}")
    layout = fmt.LAYOUTS[int(fields["layout"][0])]
    types = [stored.code for stored in FORMATS.values() if layout in stored.layouts]
    for i, name in found(~np.isin(w["dtype"], types)):
        raise VerifyError(f"{name} is {format_of(w['dtype'][i]).name} in {layout}, which has no such type")
    size = _tile_bytes(fields, stored * np.where(alone, 1, 2), w["dtype"], layout)
    for i, name in found((fields["copies"] != copies) | (fields["bytes"] != size)):
        t = tiles[i]
        raise VerifyError(f"{name} is {t['copies']} x {t['bytes']} bytes, its rows take {copies[i]} x {size[i]}")
    for i, name in found(gathered & (matrices != shape["matrices"])):
        raise VerifyError(f"{name} is chosen by slot among {matrices[i]} of {shape['matrices'][i]} matrices")


def _tile_bytes(tiles: dict[str, Ints], matrices: Ints, dtype: Ints, layout: str) -> Ints:
    """Bytes of one copy of each tile, which holds so many matrices, of one or two tensors."""
    panels = -(-(tiles["row_end"] - tiles["row_begin"]) // fmt.PANEL) * matrices
    shapes = np.stack([panels, tiles["cols"], tiles["col_begin"], dtype], 1)
    which = np.zeros(len(shapes), np.int64)
    for column in shapes.T:  # numbers the distinct shapes, a column at a time: numpy's way with rows is slow
        values = np.unique(column)
        which = which * len(values) + np.searchsorted(values, column)
        which = np.searchsorted(np.unique(which), which)
    one = np.zeros(int(which.max()) + 1, np.int64)  # a tile of each shape
    one[which] = np.arange(len(which))
    each = [format_of(code).tile_bytes(n, cols, begin, layout) for n, cols, begin, code in shapes[one].tolist()]
    return np.array(each, np.int64)[which]


def check_tapes(s: Subject, program: int) -> Coverage:
    """Checks that the tapes of a program read all of every tensor that they read exactly once (in each slot)."""
    rows, owner = s.rows("tape")
    mine = s.program[owner] == program
    owner, run = owner[mine], s.t["tape"][rows[mine]]
    tile = s.t["tiles"][run["tile"]]
    _check_runs(s, owner, run, tile)
    slots = int(run["slot"].max(initial=-1)) + 1
    read: list[int] = []
    gathered: list[int] = []
    proved: set[bytes] = set()
    for tensor, of in enumerate(_by_tensor(tile, len(s.t["weights"]))):
        # Which programs read a tensor is stated by the operators, so that a lost tape is not taken for a skipped layer.
        if bool(len(of)) != bool(int(s.t["weights"]["programs"][tensor]) >> program & 1):
            by = f"{s.name(int(owner[of[0]]))} reads it" if len(of) else "no instruction reads it"
            raise VerifyError(
                f"{s.weight(tensor)} is {'not ' * bool(len(of))}streamed by operators of program {program}, but {by}"
            )
        if not len(of):
            continue
        if (tile["gathered"][of] != tile["gathered"][of[0]]).any():
            raise VerifyError(f"program {program} reads {s.weight(tensor)} both whole and by slot")
        by_slot = bool(tile["gathered"][of[0]])
        (gathered if by_slot else read).append(tensor)
        begin = run["slot"][of].astype(np.int64) if by_slot else tile["begin"][of].astype(np.int64)
        end = begin + 1 if by_slot else tile["end"][of].astype(np.int64)
        shape = s.t["weights"][tensor]
        col_begin, cols = (tile[key][of].astype(np.int64) for key in ("col_begin", "cols"))
        boxes = np.stack([begin, end, tile["row_begin"][of], tile["row_end"][of], col_begin, col_begin + cols], 1)
        whole = (slots if by_slot else int(shape["matrices"]), int(shape["rows"]), int(shape["cols"]))
        key = boxes.tobytes() + tile["device"][of].tobytes() + np.array(whole).tobytes()
        if key not in proved:  # the same tensor of other layers is mostly cut the same
            kind = "slot" if by_slot else "matrix"
            _cover(s, f"{s.weight(tensor)} in program {program}", kind, whole, boxes, tile["device"][of], owner[of])
        proved.add(key)
    unread = set(range(len(s.t["weights"]))) - {*read, *gathered}
    return Coverage(tuple(read), tuple(gathered), tuple(sorted(unread)), slots, len(run))


def _by_tensor(tile: np.ndarray, count: int) -> list[Ints]:
    """The runs that read each tensor, as their first or second, in order."""
    second = np.flatnonzero((tile["second"] != fmt.NONE) & (tile["second"] != tile["tensor"]))
    run = np.concatenate([np.arange(len(tile)), second])
    tensor = np.concatenate([tile["tensor"], tile["second"][second]]).astype(np.int64)
    order = np.lexsort((run, tensor))
    return np.split(run[order], np.searchsorted(tensor[order], np.arange(1, count))) if count else []


def _check_runs(s: Subject, owner: Ints, run: np.ndarray, tile: np.ndarray) -> None:
    """Checks that each run has its tile's place, and that the tile is on the worker's device."""
    device = s.t["streams"]["device"][s.stream[owner]]
    stride = np.where(tile["gathered"] != 0, tile["bytes"], 0)
    wrong = (run["offset"] != tile["offset"]) | (run["bytes"] != tile["bytes"]) | (run["stride"] != stride)
    wrong |= (run["slot"] >= 0) != (tile["gathered"] != 0)
    wrong |= (run["slot"] < -1) | (device != tile["device"])
    for k in np.flatnonzero(wrong)[:1]:
        r, t = run[k], tile[k]
        raise VerifyError(
            f"{s.name(int(owner[k]))} on device {device[k]} reads tile {r['tile']} of {s.weight(int(t['tensor']))} at "
            f"{r['offset']}+{r['bytes']} every {r['stride']} in slot {r['slot']}; it is on device {t['device']} at "
            f"{t['offset']}+{t['bytes']} every {stride[k]}{'' if t['gathered'] else ', without slots'}"
        )


def _cover(
    s: Subject, what: str, kind: str, whole: tuple[int, int, int], boxes: np.ndarray, device: np.ndarray, owner: Ints
) -> None:
    """Checks that boxes (begin and end of matrix, row, column) cover all equally often, on a device at most once."""
    cuts = [np.unique(np.concatenate([boxes[:, 2 * i : 2 * i + 2].ravel(), [0, whole[i]]])) for i in range(3)]
    shape = [len(c) - 1 for c in cuts]
    on: dict[int, np.ndarray] = {}
    at = [np.searchsorted(cuts[i // 2], boxes[:, i]) for i in range(6)]
    for k, (a, b, c, d, e, f) in enumerate(zip(*at, strict=True)):
        count = on.setdefault(int(device[k]), np.zeros(shape, np.int64))
        if count[a:b, c:d, e:f].any():
            x, y, z = (int(v[0]) for v in np.nonzero(count[a:b, c:d, e:f]))
            element = (cuts[0][a + x], cuts[1][c + y], cuts[2][e + z])
            first = _reader(boxes[:k], device[:k] == device[k], element)
            raise VerifyError(
                f"{s.name(int(owner[k]))} reads {kind} {element[0]} row {element[1]} of {what}, which "
                f"{s.name(int(owner[first]))} reads too, want once"
            )
        count[a:b, c:d, e:f] += 1
    total = np.asarray(sum(on.values()))
    for x, y, z in np.argwhere(total < total.max())[:1]:
        others = ", ".join(s.name(int(i)) for i in _others(owner))
        columns = "" if shape[2] == 1 else f" columns {cuts[2][z]}:{cuts[2][z + 1]}"
        raise VerifyError(
            f"{kind} {cuts[0][x]} rows {cuts[1][y]}:{cuts[1][y + 1]}{columns} of {what} are read "
            f"{total[x, y, z]} times, want {total.max()}; other rows are read by {others}"
        )


def _reader(boxes: np.ndarray, among: np.ndarray, element: tuple[int, int, int]) -> int:
    """The box that holds an element."""
    inside = among
    for i, at in enumerate(element):
        inside = inside & (boxes[:, 2 * i] <= at) & (at < boxes[:, 2 * i + 1])
    return int(np.flatnonzero(inside)[0])


def _others(owner: Ints) -> Iterable[int]:
    return dict.fromkeys(owner.tolist()[:2])
