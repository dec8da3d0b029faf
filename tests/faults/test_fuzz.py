"""Thousands of damaged engines, of which none may crash, hang or answer wrongly (see `support/fuzz_engine.py`)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from support.fuzz_engine import KINDS
from support.fuzz_server import Outcome, run
from tilecompile.cli.verify import prove
from tilecompile.errors import EngineError
from tilecompile.runtime.folder.check import check_engine

SAMPLE, ALL = 180, 3000


def check(outcomes: list[Outcome], scratch: Path) -> None:
    """No case may end badly; what stalls or gives other tokens must be a schedule that the verifier rejects."""
    counts = Counter((o.case.split(":")[0], o.result) for o in outcomes)
    print(f"{len(outcomes)} cases: {', '.join(f'{kind} {result} {n}' for (kind, result), n in sorted(counts.items()))}")
    assert [o for o in outcomes if o.result in ("crash", "hang", "error")] == []
    for outcome in outcomes:
        if outcome.result in ("stalled", "another"):
            assert outcome.case.startswith("tables: "), outcome
            checked = check_engine(scratch / f"case{outcome.seed}")
            with pytest.raises(EngineError, match="the schedule is wrong"):
                prove(checked.manifest, checked.tables)
    assert {kind for kind, result in counts if result == "refused"} == set(KINDS)


def test_a_sample_of_damaged_engines_is_refused_or_unchanged(tiny: Path, tmp_path: Path) -> None:
    check(run(tiny, tmp_path, range(SAMPLE)), tmp_path)


@pytest.mark.slow
def test_thousands_of_damaged_engines_are_refused_or_unchanged(tiny: Path, tmp_path: Path) -> None:
    outcomes = run(tiny, tmp_path, range(SAMPLE, ALL))
    check(outcomes, tmp_path)
    assert sum(o.result in ("refused", "stalled", "same") for o in outcomes) >= 2000
