"""No single change of a field gets through: the proof refuses it, or it is harmless in every legal order."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from support.engines import tiny_model
from support.field_changes import EVERY, SWAP, Subject, changed
from tilecompile.runtime.weight_formats import FORMATS

Get = Callable[[str], Subject]

ENGINES: dict[str, dict[str, Any]] = {
    "even": {"devices": 2, "workers": 2, "placement": "even", "prefill": 12},
    "one device": {"workers": 4, "prefill": 12},
    "three devices": {"devices": 3, "workers": 2, "placement": "tensor_parallel", "prefill": 12},
    "for a GPU": {"target": "sm_90a", "workers": 3, "weights": "fp8"},
    "for two GPUs": {"target": "sm_100a", "devices": 2, "workers": 2, "placement": "even"},
}
"""Engines of a drawn GLM-5 of a dense layer, one with experts and the MTP layer, all with five step programs."""

QUICK, MANY = 2, 22
"""Changes of each field of an engine."""

LOOSE = {
    ("events", "tensor"),
    ("instructions", "prefetch"),
}
"""Fields that no task depends on: a number for listings, and a hint."""


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Get:
    """One of ENGINES."""
    known: dict[str, Subject] = {}

    def get(name: str) -> Subject:
        if name not in known:
            folder = tmp_path_factory.mktemp("engine")
            known[name] = Subject.compiled(tiny_model(folder / "model"), folder / "engine", seed=1, **ENGINES[name])
            assert len(known[name].manifest.data["programs"]) == 5
        return known[name]

    return get


def run(engine: Subject, times: int, seed: int) -> dict[tuple[str, str], Counter[str]]:
    """Changes every field a number of times; counts what was refused and what was harmless, and fails otherwise."""
    assert engine.refusal(engine.tables) is None
    rng = random.Random(seed)
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for what in EVERY:
        for _ in range(times):
            tables = changed(engine.tables, what, rng)
            if tables is None:
                continue
            text = engine.refusal(tables)
            found[what]["harmless" if text is None else "refused"] += 1
            if text is None:
                harm = engine.harm(tables)
                assert harm is None, f"{what}, seed {seed}: accepted, and {harm}"
            else:
                assert "\n" not in text
    return found


def show(found: dict[tuple[str, str], Counter[str]]) -> Counter[str]:
    """Prints the counts by field; returns the sums."""
    for (table, field), counts in found.items():
        print(f"{table:<14} {field:<15} {counts['refused']:>5} refused {counts['harmless']:>5} harmless")
    return sum(found.values(), Counter())


def test_weights_of_another_format_are_refused(subject: Get) -> None:
    """Even where their tiles are as long: bodies take one format each."""
    engine = subject("even")
    for i in range(0, len(engine.tables["weights"]), 5):
        for stored in FORMATS.values():
            tables = {name: table.copy() for name, table in engine.tables.items()}
            if tables["weights"]["dtype"][i] != stored.code:
                tables["weights"]["dtype"][i] = stored.code
                assert engine.refusal(tables), f"weight {i} in {stored.name}"
    code = engine.tables["bodies"]["format"]
    used = np.unique(engine.tables["operators"]["body"])[::5]
    for i in used.tolist():
        tables = {name: table.copy() for name, table in engine.tables.items()}
        tables["bodies"]["format"][i] = 1 - code[i] if code[i] in (0, 1) else 0
        assert "streams weights in format" in str(engine.refusal(tables))


def test_single_changes_of_fields_are_refused_or_harmless(subject: Get) -> None:
    sums = show(run(subject("even"), QUICK, 0))
    assert sums["refused"] >= 100
    assert sums["harmless"] >= 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_thousands_of_changes_are_refused_or_harmless(name: str, subject: Get) -> None:
    found = run(subject(name), MANY, 1)
    sums = show(found)
    assert sum(sums.values()) >= 2000
    for what in EVERY:
        assert found[what]["refused"] or what in LOOSE, f"no change of {what} was refused"
    assert found[SWAP]["harmless"]
