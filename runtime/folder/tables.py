"""The program tables of an engine: loaded, and checked so that no index leads out of a table or an arena."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.folder.repeat import expand
from tilecompile.runtime.folder.rows import SPANS, range_sums
from tilecompile.runtime.format import (
    ARENAS,
    COMMIT_KIND,
    DTYPES,
    LINES,
    NONE,
    SAMPLING_INPUTS,
    SAMPLING_WORDS,
    TABLES,
)
from tilecompile.runtime.weight_formats import FORMATS

Table = npt.NDArray[np.void]
Tables = dict[str, Table]

MOST_ROWS = 1 << 26
"""Repeated rows of all tables together; a model of a thousand layers has fewer."""


def load_tables(manifest: Manifest) -> Tables:
    """The tables of the whole program by name; what is stored short is expanded.

    EngineError for another record layout or shape, or an index that leads nowhere.
    """
    tables = {name: _load(manifest, name) for name in TABLES}
    _check(manifest, tables)
    if not len(tables["repeats"]):
        _check_io(manifest, tables)
        return tables
    _check_repeats(manifest, tables)
    try:
        tables = expand(tables)
    except (ValueError, IndexError, OverflowError, MemoryError) as error:  # rows of which none fits the others
        raise EngineError(f"{manifest.table('repeats')}: the tables can't be expanded by it: {error}") from error
    _check(manifest, tables)
    _check_io(manifest, tables)
    return tables


def _load(manifest: Manifest, name: str) -> Table:
    path, dtype = manifest.table(name), TABLES[name].dtype
    try:
        with path.open("rb") as file:  # not np.load, which would take an archive too
            table: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # whatever a wrong header leads to, memory for an absurd shape included
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise EngineError(f"{path}: is not a readable table: {why}") from error
    if table.dtype != dtype:
        raise EngineError(f"{path}: dtype is {_words(table.dtype)}, want {_words(dtype)}")
    if table.ndim != 1:
        raise EngineError(f"{path}: shape is {table.shape}, want one dimension")
    return np.ascontiguousarray(table)


def _check_repeats(manifest: Manifest, tables: Tables) -> None:
    """EngineError unless repeated rows are in their tables, as often everywhere, and few enough to fit in memory."""
    repeats, path = tables["repeats"], manifest.table("repeats")
    limits = {name: len(tables[name]) for name in LINES if name in tables}
    limits |= {"event_tensors": len(tables["events"])}
    total = 0
    for i, (line, begin, end, times) in enumerate(repeats.tolist()):
        limit = limits[LINES[line]] if line < len(LINES) else 0
        if line >= len(LINES) or not begin <= end <= limit:
            raise EngineError(f"{path}: entry {i} repeats {begin} to {end} of line {line}, want parts of {limit}")
        if times != repeats["times"][0] or not times:
            raise EngineError(
                f"{path}: times of entry {i} is {times}, want {repeats['times'][0] or 1} as in the others"
            )
        total += (end - begin) * times
    streams = int((repeats["line"] == LINES.index("instructions")).sum())
    if streams != len(tables["streams"]):
        raise EngineError(f"{path}: has {streams} entries of instructions, want {len(tables['streams'])} (streams)")
    if total > MOST_ROWS:
        raise EngineError(f"{path}: stands for {total} rows, want {MOST_ROWS} at most")


def _words(dtype: np.dtype[Any]) -> str:
    """A record layout in short: names, types and offsets of its fields."""
    return ", ".join(f"{n} {f[0]}@{f[1]}" for n, f in dtype.fields.items()) if dtype.fields else str(dtype)


def arena_sizes(manifest: Manifest) -> npt.NDArray[np.uint64]:
    """Bytes of each arena, [devices, len(ARENAS)]; the weight arena is the pool."""
    rows = [
        {**arena, "weight": int(pool["bytes"])} for arena, pool in zip(manifest.arenas, manifest.pools, strict=True)
    ]
    return np.array([[row[name] for name in ARENAS] for row in rows], np.uint64)


def _check(manifest: Manifest, tables: Tables) -> None:
    def below(name: str, field: str, limit: Any, what: str, optional: bool = False) -> None:
        values = tables[name][field].astype(np.uint64)
        bad = np.flatnonzero((values >= np.uint64(limit)) & ~(optional & (values == NONE)))
        if bad.size:
            where = f"{manifest.table(name)}: {field} of entry {bad[0]}"
            raise EngineError(f"{where} is {values[bad[0]]}, want less than {limit} ({what})")

    def within(name: str, what: str, ends: npt.NDArray[Any], limits: Any) -> None:
        bad = np.flatnonzero(ends > limits)
        if bad.size:
            limit = np.broadcast_to(limits, ends.shape)[bad[0]]
            raise EngineError(
                f"{manifest.table(name)}: {what} of entry {bad[0]} end at {ends[bad[0]]}, want {limit} at most"
            )

    instructions, buffers = tables["instructions"], tables["buffers"]
    if len(tables["streams"]) < manifest.workers * len(manifest.data["programs"]):
        raise EngineError(
            f"{manifest.table('streams')}: has {len(tables['streams'])} streams, want one for each of "
            f"{manifest.workers} workers in each of {len(manifest.data['programs'])} programs"
        )
    below("streams", "program", len(manifest.data["programs"]), "programs")
    below("streams", "device", manifest.devices, "devices")
    below("streams", "worker", manifest.workers, "workers")
    within("streams", "instructions", tables["streams"]["end"], len(instructions))
    within("streams", "first instructions", tables["streams"]["begin"], tables["streams"]["end"])
    _check_streams(manifest, tables["streams"])
    _check_order(manifest, tables["streams"], instructions)
    below("instructions", "kind", len(manifest.data["kinds"]), "task kinds")
    below("instructions", "op", len(manifest.data["operators"]), "operators")
    below("instructions", "prefetch", len(tables["tape"]), "tape entries", optional=True)
    for field, table in SPANS.items():
        ends = instructions[f"{field}_begin"].astype(np.uint64) + instructions[f"{field}_count"]
        within("instructions", table, ends, len(tables[table]))
    below("operands", "buffer", len(buffers), "buffers")
    within("operands", "offsets", tables["operands"]["offset"], buffers["bytes"][tables["operands"]["buffer"]])
    for name in ("waits", "notifies"):
        below(name, "event", len(tables["events"]), "events")
    below("events", "program", len(manifest.data["programs"]), "programs")
    below("buffers", "device", manifest.devices, "devices")
    below("buffers", "arena", len(ARENAS), "arenas")
    below("buffers", "dtype", len(DTYPES), "dtypes")
    below("tape", "tile", len(tables["tiles"]), "weight tiles")
    below("tiles", "device", manifest.devices, "devices")
    below("tiles", "tensor", len(tables["weights"]), "weights")
    below("tiles", "second", len(tables["weights"]), "weights", optional=True)
    codes = [stored.code for stored in FORMATS.values()]
    for i in np.flatnonzero(~np.isin(tables["weights"]["dtype"], codes))[:1].tolist():
        found = f"dtype of entry {i} is {tables['weights']['dtype'][i]}"
        raise EngineError(f"{manifest.table('weights')}: {found}, want one of {codes} (weight formats)")
    for name in ("buffers", "tape", "tiles"):
        for field in ("offset", "bytes"):
            below(name, field, 1 << 62, "62 bits")
    sizes = arena_sizes(manifest)
    within("buffers", "bytes", buffers["offset"] + buffers["bytes"], sizes[buffers["device"], buffers["arena"]])
    pool = int(sizes[:, ARENAS.index("weight")].max())
    within("tape", "bytes", tables["tape"]["offset"] + tables["tape"]["bytes"], pool)


def launched_streams(manifest: Manifest, tables: Tables) -> Table:
    """The streams of the programs that are launched."""
    streams = tables["streams"]
    return streams[np.isin(streams["program"], manifest.programs.launched)]


def _check_io(manifest: Manifest, tables: Tables) -> None:
    """The loops' own buffers are there, with room for the largest step that they start."""
    programs = manifest.programs
    most = int(programs.rows["tokens"][list(programs.launched)].max())
    needed = [("io", manifest.data["io"], most, {"ids": 4 * most, "position": 4})]
    if manifest.samples:
        words = dict(zip(SAMPLING_INPUTS, (SAMPLING_WORDS, *2 * (manifest.vocab_size,)), strict=True))
        needed.append(("io", manifest.data["io"], most, {name: 4 * count for name, count in words.items()}))
    for i in programs.launched:
        tokens = int(programs.rows["tokens"][i])
        rows = 1 if programs.rows["last_row"][i] else tokens
        sizes = {"logits": 4 * rows * manifest.vocab_size, "next": 4 * rows}
        needed.append((f"programs[{i}].io", manifest.data["programs"][i]["io"], tokens, sizes))
    for key, stated, tokens, sizes in needed:
        for name, least in sizes.items():
            index, where = stated[name], f"{manifest.path}: {key}.{name}"
            if index >= len(tables["buffers"]):
                raise EngineError(f"{where} is {index}, want less than {len(tables['buffers'])} (buffers)")
            size = int(tables["buffers"]["bytes"][index])
            if size < least:
                raise EngineError(
                    f"{where} is buffer {index} of {size} bytes, want {least} for steps of {tokens} tokens"
                )


def _check_streams(manifest: Manifest, streams: Table) -> None:
    """Every worker has one stream of its first agent in every program."""
    programs, workers = len(manifest.data["programs"]), manifest.workers
    first = streams[streams["agent"] == 0]
    found = np.zeros((programs, workers), np.int64)
    np.add.at(found, (first["program"], first["worker"]), 1)
    bad = np.argwhere(found != 1)
    if bad.size:
        program, worker = (int(i) for i in bad[0])
        where = f"{manifest.table('streams')}: worker {worker}"
        raise EngineError(f"{where} has {found[program, worker]} streams in program {program}, want 1")


def _check_order(manifest: Manifest, streams: Table, instructions: Table) -> None:
    """Every instruction is in one stream, and every program has one sink."""
    begin, end = streams["begin"].astype(np.int64), streams["end"].astype(np.int64)
    filled = np.flatnonzero(begin != end)
    filled = filled[np.argsort(begin[filled])]
    after = np.append(0, end[filled])
    gaps = np.append(begin[filled], len(instructions)) != after
    if gaps.any():
        where = after[gaps.argmax()]
        raise EngineError(f"{manifest.table('streams')}: instruction {where} is not in exactly one stream")
    found = np.zeros(len(manifest.data["programs"]), np.int64)
    np.add.at(found, streams["program"], range_sums(instructions["kind"] == COMMIT_KIND, begin, end))
    for program in np.flatnonzero(found != 1)[:1]:
        raise EngineError(f"{manifest.table('instructions')}: program {program} has {found[program]} sinks, want 1")
