"""Engines whose requests alternate between two programs, or whose program isn't the first, made from other ones."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from support.damage import copy, edit_manifest, put, rehash, table
from tilecompile.runtime.folder.contract import addresses
from tilecompile.runtime.folder.manifest import read_manifest
from tilecompile.runtime.format import TABLES

SPANS = {"wait": "waits", "notify": "notifies", "tape": "tape", "region": "regions", "operand": "operands"}


def write(engine: Path, tables: dict[str, np.ndarray]) -> None:
    """Puts tables in the place of an engine's, and makes its kernel state that it was built for them."""
    before = addresses({name: table(engine, name) for name in TABLES})
    for name, rows in tables.items():
        content = io.BytesIO()
        np.save(content, rows)
        put(engine / "tables" / f"{name}.npy", content.getvalue())
    kernel = read_name(engine)
    code = (engine / kernel).read_bytes()
    assert code.count(before.encode()) == 1
    put(engine / kernel, code.replace(before.encode(), addresses(tables).encode()))
    rehash(engine, kernel, *(f"tables/{name}.npy" for name in tables))


def read_name(engine: Path) -> str:
    """The name of the kernel's file."""
    return next(name for name in ("kernel.so", "kernel.cubin") if (engine / name).exists())


def alternating(engine: Path, folder: Path) -> Path:
    """A copy of an engine with `again`, a second program of the same tasks: each step is followed by one of the other.

    The copied tasks have events, weight runs, regions and operands of their own, and the same buffers.
    """
    copy(engine, folder)
    tables = {name: table(folder, name) for name in TABLES}
    assert not len(tables["repeats"])
    number = len(read_manifest(folder).data["programs"])
    events = np.flatnonzero(tables["events"]["program"] == 0)
    event_of = np.arange(len(tables["events"]) + len(events))
    event_of[events] = len(tables["events"]) + np.arange(len(events))
    tables["events"] = np.append(tables["events"], tables["events"][events])
    tables["events"]["program"][-len(events) :] = number
    for stream in tables["streams"][tables["streams"]["program"] == 0]:
        mine = tables["instructions"][stream["begin"] : stream["end"]].copy()
        run_of = {}
        for instruction in mine:
            for prefix, name in SPANS.items():
                begin, rows = int(instruction[f"{prefix}_begin"]), tables[name]
                instruction[f"{prefix}_begin"] = len(rows)
                run_of |= {begin + i: len(rows) + i for i in range(instruction["tape_count"]) if name == "tape"}
                tables[name] = np.append(rows, rows[begin : begin + int(instruction[f"{prefix}_count"])])
                if name in ("waits", "notifies"):
                    added = tables[name]["event"][len(rows) :]
                    added[:] = event_of[added]
        for instruction in mine:
            instruction["prefetch"] = run_of.get(int(instruction["prefetch"]), instruction["prefetch"])
        begin = len(tables["instructions"])
        tables["instructions"] = np.append(tables["instructions"], mine)
        row = stream.copy()
        row["program"], row["begin"], row["end"] = number, begin, begin + len(mine)
        tables["streams"] = np.append(tables["streams"], row)
    tables["weights"]["programs"] |= (tables["weights"]["programs"] & 1) << number

    def follow(data: dict[str, Any]) -> None:
        decode = data["programs"][0]
        data["programs"].append({**decode, "name": "again"})
        for key in ("on_prompt", "on_single", "on_every", "on_token"):
            decode[key] = "again"

    edit_manifest(folder, follow)
    write(folder, tables)
    return folder


def exchanged(engine: Path, folder: Path) -> Path:
    """A copy of an engine in which `decode` and the next program have changed their numbers."""
    copy(engine, folder)
    tables = {name: table(folder, name) for name in TABLES}
    for name in ("streams", "events", "operators"):
        tables[name]["program"] ^= tables[name]["program"] < 2
    programs = tables["weights"]["programs"]
    programs[:] = (programs & 1) << 1 | (programs >> 1 & 1) | programs & ~np.uint32(3)

    def exchange(data: dict[str, Any]) -> None:
        data["programs"][:2] = data["programs"][1::-1]

    edit_manifest(folder, exchange)
    write(folder, tables)
    return folder
