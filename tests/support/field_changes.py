"""Engines with one field of their tables changed, and what a program of such tables computes in random legal orders.

What runs a program here is neither a kernel nor the loop of requests: any step program can be run alone, on caches and
inputs that are drawn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tilecompile.compile import compile_model
from tilecompile.errors import EngineError
from tilecompile.interpret.evaluate import Evaluator, one_thread
from tilecompile.options import CompileOptions
from tilecompile.runtime import format as fmt
from tilecompile.runtime.folder.manifest import Manifest, read_manifest
from tilecompile.runtime.folder.operators import read_operators
from tilecompile.runtime.folder.tables import arena_sizes, load_tables
from tilecompile.verify.proof import Memory, VerifyError, verify

Tables = dict[str, np.ndarray]
Results = dict[tuple[str, int], bytes]
"""What a program leaves in memory: the bytes of each buffer that outlives it, by the program's name and the buffer."""

STATEMENTS = ("operators", "bodies", "views", "accesses")
"""Tables that only the proof reads: what is executed doesn't depend on them."""

POSITION, POSITIONS = 40, 48
"""Position of the step's first token, past the number of positions that attention selects, and those of the caches.
Steps of large programs are partial: their tokens are as many as there is room for."""


@dataclass(frozen=True)
class Subject:
    """A compiled engine whose tables are changed."""

    manifest: Manifest
    tables: Tables

    @staticmethod
    def compiled(model: Path | str, folder: Path, **options: Any) -> Subject:
        """The engine of a model, without a kernel."""
        compile_model(CompileOptions(str(model), folder, max_seq_len=POSITIONS, no_kernel=True, **options))
        manifest = read_manifest(folder)
        return Subject(manifest, load_tables(manifest))

    @cached_property
    def layers(self) -> list[int | None]:
        """The layers of the operators."""
        return [operator.layer for operator in read_operators(self.manifest)]

    @cached_property
    def results(self) -> Results:
        """What the unchanged programs compute; the same in several orders."""
        found = [run(self, self.tables, seed) for seed in range(3)]
        assert found[0] == found[1] == found[2]
        return found[0]

    def refusal(self, tables: Tables) -> str | None:
        """The proof's error about tables, or None."""
        data = self.manifest.data
        names = [b["tensor"] for b in data["buffers"]]
        memory = Memory(arena_sizes(self.manifest).astype(np.int64))
        try:
            verify(tables, data["operators"], memory, names, data["weights"]["tensors"], layers=self.layers)
        except VerifyError as error:
            return str(error)
        return None

    def harm(self, tables: Tables) -> str | None:
        """How programs of tables, in random legal orders, differ from the unchanged ones; None if they don't."""
        if all(tables[name] is self.tables[name] for name in tables if name not in STATEMENTS):
            return None
        for seed in range(2):
            try:
                found = run(self, tables, seed)
            except (EngineError, RuntimeError, ValueError, LookupError) as error:
                return f"order {seed}: {error}"
            wrong = [key for key, value in self.results.items() if found.get(key) != value]
            if wrong:
                return f"order {seed}: other values in {wrong[:3]}"
        return None


def run(engine: Subject, tables: Tables, seed: int) -> Results:
    """Runs every step program once, in a random legal order, over memory that is drawn; EngineError if it stalls."""
    rng = random.Random(seed)
    results: Results = {}
    evaluator = Evaluator(engine.manifest, tables)
    data = engine.manifest.data
    with one_thread():
        for number, program in enumerate(data["programs"]):
            fill(engine, tables, evaluator)
            tokens = min(int(program["tokens"]), POSITIONS - POSITION)
            step(tables, number, lambda i, n=tokens: evaluator.run(i, n, True), rng)  # type: ignore[misc]
            for b, about in enumerate(data["buffers"]):
                kept = fmt.ARENAS[engine.tables["buffers"]["arena"][b]] in ("cache", "io")
                if kept or (about["program"] == program["name"] and about["tensor"] in outputs(evaluator, number)):
                    results[program["name"], b] = evaluator.memory.buffer(b).view(torch.uint8).numpy().tobytes()
    return results


def outputs(evaluator: Evaluator, program: int) -> tuple[str, ...]:
    """The tensors that a program gives."""
    return list(evaluator.graph.programs.values())[program].outputs


def fill(engine: Subject, tables: Tables, evaluator: Evaluator) -> None:
    """Draws what is in memory before a step: caches and inputs, the same for each buffer in all tables."""
    memory, data = evaluator.memory, engine.manifest.data
    memory.poison()
    for b, about in enumerate(data["buffers"]):
        if fmt.ARENAS[engine.tables["buffers"]["arena"][b]] not in ("cache", "io"):
            continue
        rng, target = np.random.default_rng(b), memory.buffer(b)
        values = rng.standard_normal(target.numel()).astype(np.float32)
        if about["tensor"].split("@")[0] in fmt.SAMPLING_INPUTS:
            target.zero_()  # greedily: a drawn record would say nothing that a request could
        elif target.dtype.is_floating_point:
            target.copy_(memory.buffer(b).new_tensor(values))
        else:
            position = about["tensor"].split("@")[0] == "position"
            words = np.full(len(values), POSITION) if position else rng.integers(0, data["vocab_size"], len(values))
            target.copy_(target.new_tensor(words.astype(np.int32)))


def step(tables: Tables, program: int, execute: Callable[[int], None], rng: random.Random) -> None:
    """Runs the instructions of a step program in a random legal order. EngineError if it stalls."""
    ins = tables["instructions"]
    left = [list(range(s["begin"], s["end"])) for s in tables["streams"] if s["program"] == program]
    counters = np.zeros(len(tables["events"]), np.int64)

    def rows(i: int, field: str, name: str) -> np.ndarray:
        begin = int(ins[f"{field}_begin"][i])
        return tables[name][begin : begin + int(ins[f"{field}_count"][i])]

    while left := [s for s in left if s]:
        waits = [rows(s[0], "wait", "waits") for s in left]
        ready = [s for s, w in zip(left, waits, strict=True) if (counters[w["event"]] >= w["count"]).all()]
        if not ready:
            raise EngineError("the program stalls")
        i = rng.choice(ready).pop(0)
        if ins["kind"][i] == fmt.COMMIT_KIND:
            if any(left):
                raise EngineError("the sink is not the last instruction")
            continue
        execute(i)
        np.add.at(counters, rows(i, "notify", "notifies")["event"], 1)


# --- changes --------------------------------------------------------------------------------------------------------

FIELDS = [(name, field.name) for name, record in fmt.TABLES.items() if name != "repeats" for field in record.fields]
SWAP = ("instructions", "swapped")
EVERY = [*FIELDS, SWAP]
"""All that a change can be of; tables that are proved have no rows of `repeats`."""


def changed(tables: Mapping[str, np.ndarray], what: tuple[str, str], rng: random.Random) -> Tables | None:
    """A copy with one field of one row changed, or two instructions swapped; None where there is nothing to change."""
    name, field = what
    table = tables[name].copy()
    if not len(table):
        return None
    if what == SWAP:
        a, b = rng.choice(swaps(tables))
        table[[a, b]] = table[[b, a]]
    else:
        values = table[field].reshape(len(table), -1)
        places = list(np.ndindex(values.shape))
        if field in ("at", "by") and rng.random() < 0.5:  # most bounds follow no coordinate, so that these say nothing
            places = np.argwhere(table["at"].reshape(values.shape) != fmt.NONE).tolist()
        row, column = rng.choice(places)
        old, least, most = int(values[row, column]), np.iinfo(values.dtype).min, np.iinfo(values.dtype).max
        others = np.unique(values[:, column]).tolist()
        tried = [old + 1, old - 1, rng.choice(others), rng.choice(others), old + 64, old * 2, 0, most]
        values[row, column] = rng.choice([new for new in tried if new != old and least <= new <= most])
        table[field] = values.reshape(table[field].shape)
    return {**tables, name: table}


def swaps(tables: Mapping[str, np.ndarray]) -> list[tuple[int, int]]:
    """Pairs of instructions: neighbours in a stream, and as many drawn from all."""
    streams = tables["streams"].tolist()
    near = [(i, i + 1) for *_, begin, end in streams for i in range(begin, end - 1)]
    rng, total = random.Random(len(near)), len(tables["instructions"])
    return near + [tuple(rng.sample(range(total), 2)) for _ in near]  # type: ignore[misc]
