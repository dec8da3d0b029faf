"""The proof's verdict equals the oracle's on thousands of small random programs."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from support.oracle import wrong
from support.random_programs import CHANGES, random_program
from support.table_tools import put_together
from tilecompile.verify import memory as verify_layout
from tilecompile.verify import order as verify_order
from tilecompile.verify import weights as verify_weights
from tilecompile.verify import window as verify_window
from tilecompile.verify import windows as verify_windows
from tilecompile.verify.proof import VerifyError, verify
from tilecompile.verify.window import Window
from tilecompile.verify.windows import Proved

SAMPLE, ALL = 600, 6000
LEAST = 0.25
"""Least fraction of each verdict."""


def compare(seeds: range) -> tuple[Counter[bool], dict[str, Counter[bool]], Counter[str]]:
    """Verdicts over all programs, those with a single change by its name, and what the oracle found, in a word.

    Both proofs must agree with the oracle: of all pairs, and by windows of sections.
    """
    verdicts: Counter[bool] = Counter()
    by_change: dict[str, Counter[bool]] = defaultdict(Counter)
    reasons: Counter[str] = Counter()
    windows: dict[bytes, Window] = {}  # of all programs: equal ones have equal keys, others don't
    for seed in seeds:
        parts, changes = random_program(seed)
        tables = put_together(parts)
        want = wrong(tables)
        for how in (None, Proved(windows)):
            try:
                verify(tables, (), proved=how, layers=hinted(tables, seed), stated=False)
                text = None
            except VerifyError as error:
                text = str(error)
            assert (text is None) == (want is None), f"seed {seed} {changes}: oracle {want}, proof {text}"
        verdicts[want is None] += 1
        if len(changes) == 1:
            by_change[changes[0]][want is None] += 1
        if not changes:
            assert want is None, f"seed {seed}: {want}"
        reasons[(want or "right").split()[0].strip(":")] += 1
    return verdicts, by_change, reasons


def hinted(tables: dict[str, np.ndarray], seed: int) -> list[int | None]:
    """Layers of the operators: in their order, in groups, or anyhow, which must not matter."""
    rng = random.Random(seed)
    count, how = int(tables["instructions"]["op"].max(initial=0)) + 1, rng.randrange(3)
    layers = [rng.randrange(6) if how == 0 else i // 3 if how == 1 else i for i in range(count)]
    return [layer if rng.random() < 0.9 else None for layer in layers]


def check(seeds: range) -> dict[str, Counter[bool]]:
    verdicts, by_change, reasons = compare(seeds)
    print(f"{len(seeds)} programs: {verdicts[True]} right, {verdicts[False]} wrong: {dict(reasons.most_common())}")
    assert min(verdicts[True], verdicts[False]) >= LEAST * len(seeds)
    for word in (
        "race",
        "cycle",
        "sink",
        "threshold",
        "layout",
        "weights",
        "tape",
        "streams",
        "region",
        "event",
        "unwritten",
    ):
        assert reasons[word], f"no program was wrong for: {word}"
    return by_change


def test_verdicts_equal_the_oracles() -> None:
    check(range(SAMPLE))


@pytest.mark.slow
def test_verdicts_equal_the_oracles_on_thousands() -> None:
    by_change = check(range(SAMPLE, SAMPLE + ALL))
    for change in CHANGES:
        found = by_change[change.__name__]
        assert found[False], f"{change.__name__} was never wrong"
    # A single lost edge, swap or move is often harmless and often not: the programs are neither loose nor overtied.
    for name in ("lose_edge", "swap", "move", "more_waiting", "alias"):
        assert min(by_change[name].values()) >= 5, (name, by_change[name])


def touching(a: Any, b: Any) -> np.ndarray:
    """Regions that share a side count as overlapping."""
    rows = (a["row_begin"][:, None] < b["row_end"]) & (b["row_begin"] < a["row_end"][:, None])
    return np.asarray(rows & (a["col_begin"][:, None] <= b["col_end"]) & (b["col_begin"] < a["col_end"][:, None]))


@pytest.mark.parametrize(
    ("module", "name", "planted"),
    [
        (verify_order, "_sink", None),
        (verify_order, "race", None),
        (verify_order, "_written", None),
        (verify_order, "uncovered", lambda regions, boxes, among: np.arange(len(regions))),
        (verify_order, "overlaps", touching),
        (verify_layout, "_apart", None),
        (verify_layout, "_regions", None),
        (verify_weights, "_cover", None),
        (verify_window, "race", None),
        (verify_window, "uncovered", np.zeros(0, np.int64)),
        (verify_windows, "_link", lambda section, before: np.full(len(section.buffers), -1)),
        (verify_windows._Walk, "far", 0),
        (verify_windows._Walk, "sink", None),
        (verify_weights, "_check_runs", None),
    ],
)
def test_a_weakened_proof_differs_from_the_oracle(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, planted: Any
) -> None:
    """Programs on which a proof with one check less, or a wrong one, differs from the oracle are among the sample."""
    monkeypatch.setattr(module, name, planted if callable(planted) else lambda *args: planted)
    with pytest.raises(AssertionError, match="oracle"):
        compare(range(SAMPLE))
