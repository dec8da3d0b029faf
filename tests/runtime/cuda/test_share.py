"""One device's part of a plan alone: its exchanges are looped back, so it runs to its end without the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.engines import tiny_model
from tilecompile.compile import compile_model
from tilecompile.errors import EngineError
from tilecompile.options import CompileOptions
from tilecompile.runtime.cuda.share import share_of
from tilecompile.runtime.folder.manifest import read_manifest
from tilecompile.runtime.folder.operators import Shared, read_operators
from tilecompile.runtime.folder.rows import referrers
from tilecompile.runtime.folder.tables import Tables, load_tables
from tilecompile.runtime.format import COMMIT_KIND


def plan(folder: Path, placement: str, reduction: str | None = None) -> tuple[Tables, list[Shared]]:
    model = str(tiny_model(folder / "model"))
    shape = {"devices": 2, "workers": 3, "max_seq_len": 64, "no_kernel": True, "no_weights": True}
    options = CompileOptions(
        model, folder / "engine", target="sm_90a", placement=placement, reduction=reduction, **shape
    )
    compile_model(options)
    manifest = read_manifest(options.output)
    return load_tables(manifest), [o.shared for o in read_operators(manifest)]


def executed(tables: Tables, steps: int) -> list[int]:
    """How often each instruction runs in so many steps, as the loop would have it; stops where no worker can go on."""
    counters = np.zeros(len(tables["events"]), np.int64)
    runs = [0] * len(tables["instructions"])
    streams = tables["streams"][tables["streams"]["program"] == 0]
    for step in range(1, steps + 1):
        at = streams["begin"].astype(int).tolist()
        moved = True
        while moved:
            moved = False
            for s, stream in enumerate(streams):
                while at[s] < int(stream["end"]):
                    ins = tables["instructions"][at[s]]
                    waits = tables["waits"][int(ins["wait_begin"]) :][: int(ins["wait_count"])]
                    if (counters[waits["event"]] < step * waits["count"].astype(np.int64)).any():
                        break
                    told = tables["notifies"][int(ins["notify_begin"]) :][: int(ins["notify_count"])]
                    np.add.at(counters, told["event"], 1)
                    runs[at[s]] += 1
                    at[s] += 1
                    moved = True
    return runs


@pytest.mark.parametrize(
    ("placement", "reduction"),
    [("tensor_parallel", "one_shot"), ("tensor_parallel", "two_step"), ("roles", None), ("even", None)],
)
def test_a_share_runs_alone(placement: str, reduction: str | None, tmp_path: Path) -> None:
    tables, operators = plan(tmp_path, placement, reduction)
    owner = {}
    for row in tables["streams"]:
        owner |= dict.fromkeys(range(int(row["begin"]), int(row["end"])), (int(row["device"]), int(row["program"])))
    (sink,) = [i for i in np.flatnonzero(tables["instructions"]["kind"] == COMMIT_KIND).tolist() if owner[i][1] == 0]
    device = owner[sink][0]
    share = share_of(tables, device, operators)
    runs = executed(share, 3)
    assert {runs[i] for i, whose in owner.items() if whose == (device, 0)} == {3}
    assert {runs[i] for i, whose in owner.items() if whose[0] != device} <= {0}
    # What crosses devices still does, and waits for the device's own part of it.
    events, owner_of = share["events"], referrers(share["instructions"], "wait")
    across = set(share["notifies"]["event"][share["notifies"]["scope"] != 0].tolist())
    awaited = {e for e, i in zip(share["waits"]["event"].tolist(), owner_of.tolist(), strict=True) if runs[i]}
    assert awaited & across
    arrived = [e for e in awaited & across if not events["wait_count"][e]]
    assert len(arrived) < len(awaited & across) / (2 if placement == "tensor_parallel" else 1)


def test_only_who_decides_can_be_alone(tmp_path: Path) -> None:
    tables, operators = plan(tmp_path, "tensor_parallel")
    with pytest.raises(EngineError, match="share is device 1, want 0: the one that decides what comes next"):
        share_of(tables, 1, operators)
