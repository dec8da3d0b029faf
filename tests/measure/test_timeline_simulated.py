"""timeline --simulated: the measured timeline's trace and summary, of another machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.commands import run
from support.machines import write_machine
from support.trace_format import check_format, slices
from tilecompile.runtime.folder.manifest import read_manifest


def test_a_simulated_step_has_the_trace_of_a_measured_one(two_devices: Path, tmp_path: Path) -> None:
    machine, output = write_machine(tmp_path / "m.toml", 2, target="sm_90a"), tmp_path / "trace.json"
    arguments = ("--simulated", str(machine), "--context", "40", "--json", "-o", str(output))
    result = run("timeline", str(two_devices), *arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["source"], found["machine"]) == ("simulated", {"name": "assumed"})
    made = check_format(output.read_text())
    assert made["otherData"]["source"] == "simulated"
    work = slices(made["traceEvents"], "work")
    assert len(work) == read_manifest(two_devices).program("decode")["tasks"] == found["tasks"]
    tracks = {(e["pid"], e["tid"]) for e in work}
    assert (len({pid for pid, _ in tracks}), len(tracks)) == (2, 4)
    ends = {e["id"]: e for e in made["traceEvents"] if e["ph"] == "f"}
    across = [e for e in made["traceEvents"] if e["ph"] == "s" and ends[e["id"]]["pid"] != e["pid"]]
    assert across  # exchanges are flows from device to device
    told = json.loads(run("simulate", str(two_devices), "--machine", str(machine), "--context", "40", "--json").stdout)
    assert found["step_us"] == pytest.approx(1e3 * told["step_ms"])


def test_the_summary_says_that_costs_are_assumed(two_devices: Path) -> None:
    result = run("timeline", str(two_devices), "--simulated", "h100x8", "--context", "40")
    assert result.exit_code == 0, result.output
    for words in (
        "machine h100x8, with assumed costs",
        "a simulated step at context 40",
        "of the roof",
        "critical path:",
    ):
        assert words in result.stdout
    assert result.stderr == ""
