"""An engine's buffers: their names and contents, and which operator of a step writes where."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.errors import EngineError, InputError
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.folder.tables import Table, Tables
from tilecompile.runtime.format import ARENAS, DTYPES, WRITE
from tilecompile.runtime.names import ranges, within_layer

Arrays = dict[str, npt.NDArray[Any]]
Area = Callable[[int, str, int, int], npt.NDArray[np.uint8]]
"""A copy of bytes `begin` to `end` of an arena, by device and name."""

_NUMPY = {"f32": np.float32, "bf16": np.uint16, "i32": np.int32}


def writes(manifest: Manifest, tables: Tables, program: int = 0) -> dict[str, Table]:
    """The boxes (region records) that each operator of a step program writes, by operator, in program order."""
    found: dict[int, list[Table]] = {}
    for stream in tables["streams"][tables["streams"]["program"] == program]:
        for ins in tables["instructions"][stream["begin"] : stream["end"]]:
            begin = int(ins["region_begin"])
            boxes = tables["regions"][begin : begin + int(ins["region_count"])]
            found.setdefault(int(ins["op"]), []).append(boxes[boxes["mode"] == WRITE])
    names = manifest.data["operators"]
    boxes_of: dict[str, list[Table]] = {}
    for op in sorted(found):
        boxes_of.setdefault(names[op] if op < len(names) else f"#{op}", []).extend(found[op])
    return {name: np.concatenate(boxes) for name, boxes in boxes_of.items()}


def numbers_of(boxes: Table) -> list[int]:
    """The numbers of the buffers that some boxes are in."""
    return list(dict.fromkeys(boxes["buffer"].tolist()))


def find_operator(operators: Mapping[str, int | None], stated: str) -> str:
    """The operator that OP@LAYER means: `self_attn.q_b_proj@2`, or OP alone outside the layers.

    OP is the name within the layer, or the end of it (whole words between dots) if no other operator ends so; of an
    operator that was fused from several, the name of any. `operators` has the layer of each. InputError that lists the
    candidates, or the layers where none has that number.
    """
    op, _, layer = stated.partition("@")
    if layer and not layer.isdecimal():
        raise InputError(f"operator {stated!r}: the layer is {layer!r}, want OP@LAYER with a whole number")
    if not op:
        raise InputError(f"operator {stated!r} has no name, want OP@LAYER")
    layers = sorted({of for of in operators.values() if of is not None})
    if layer and int(layer) not in layers:
        raise InputError(f"operator {stated!r}: layer {layer} is unknown, the engine has the layers {ranges(layers)}")
    exact, ends, inside = [], [], []
    for name, of in operators.items():
        if layer and of != int(layer):
            continue
        inside.append(name)
        parts = within_layer(name, of if layer else None).split("+")
        if stated == name or op in ("+".join(parts), *parts):
            exact.append(name)
        elif any(part.endswith("." + op) for part in parts):
            ends.append(name)
    found = exact or ends
    if len(found) == 1:
        return found[0]
    word = op.rpartition(".")[2]
    close = found or [name for name in inside if word in name] or inside or list(operators)
    shown = ", ".join(close[:20]) + (f" and {len(close) - 20} more" if len(close) > 20 else "")
    raise InputError(f"operator {stated!r} is {'ambiguous' if found else 'unknown'}: {shown}")


def check_kept(manifest: Manifest, tables: Tables, written: dict[str, Table], name: str) -> None:
    """EngineError unless an operator's buffers still hold what it wrote when the step is over."""
    buffers, mine = tables["buffers"], written[name]
    begin = buffers["offset"]
    end = begin + buffers["bytes"]
    for other, boxes in written.items():
        if other == name:
            continue
        a, b = mine["buffer"][:, None], boxes["buffer"]
        memory = (begin[a] < end[b]) & (begin[b] < end[a])
        for key in ("device", "arena"):
            memory &= buffers[key][a] == buffers[key][b]
        box = np.ones_like(memory)
        for axis in ("row", "col"):
            box &= (mine[f"{axis}_begin"][:, None] < boxes[f"{axis}_end"]) & (
                boxes[f"{axis}_begin"] < mine[f"{axis}_end"][:, None]
            )
        if (memory & (box | (a != b))).any():
            raise EngineError(
                f"{manifest.folder}: the kernel doesn't stop after {name}, and {other} writes to the same memory in "
                "the same step; ask the interpreter"
            )


def labels(manifest: Manifest, tables: Tables) -> list[str]:
    """A name for each buffer: its tensor's, with the program and the device where other buffers have the same."""
    buffers = tables["buffers"]
    stated = manifest.data.get("buffers")
    if not isinstance(stated, list) or len(stated) != len(buffers):
        return [f"buffer{i}" for i in range(len(buffers))]
    names = [str(s["tensor"]) for s in stated]
    several = {s["tensor"] for s in stated if s["program"] not in (None, manifest.data["programs"][0]["name"])}
    for i, s in enumerate(stated):
        if s["tensor"] in several and s["program"] is not None:
            names[i] = f"{s['program']}:{names[i]}"
        if manifest.devices > 1:
            names[i] += f" on device {buffers['device'][i]}"
    return names


def read_buffers(manifest: Manifest, tables: Tables, numbers: Iterable[int] | None, area: Area) -> Arrays:
    """Copies of buffers (None: all but the weights) by label, in the shapes of their tensors; bf16 as float32."""
    names, buffers = labels(manifest, tables), tables["buffers"]
    if numbers is None:
        numbers = np.flatnonzero(buffers["arena"] != ARENAS.index("weight")).tolist()
    stated = manifest.data.get("buffers", [])
    arrays = {}
    for i in numbers:
        record = buffers[i]
        begin, size = int(record["offset"]), int(record["bytes"])
        dtype = DTYPES[int(record["dtype"])]
        data = area(int(record["device"]), ARENAS[int(record["arena"])], begin, begin + size)
        values: npt.NDArray[Any] = data.view(_NUMPY[dtype])
        if dtype == "bf16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        shape = tuple(stated[i]["shape"]) if len(stated) == len(buffers) else ()
        if prod(shape) != values.size or not shape:
            shape = (int(record["rows"]), int(record["cols"]))
        arrays[names[i]] = values.reshape(shape)
    return arrays
