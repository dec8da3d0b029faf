"""calibrate --from: a GPU machine's description filled with what was measured there, and impossible results."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from support.commands import refused, run
from tilecompile.schedules.machine import load_machine

SPEED: dict[str, Any] = {
    "read_bandwidth": 4.32e12,
    "event_latency_ns": 730.0,
    "task_start_ns": 240.0,
    "gpu": "NVIDIA H200",
    "driver": "999.1",
    "date": "2030-01-02T03:04:05+00:00",
    "command": "python tests/gpu/run.py carried --json results.json",
}
"""Made up, not measured."""


def results(folder: Path, **changed: Any) -> str:
    """A results file; None leaves a key out."""
    speed = {key: value for key, value in {**SPEED, **changed}.items() if value is not None}
    path = folder / "results.json"
    path.write_text(json.dumps({"gpu": "NVIDIA H200", "parts": {}, "speed": speed}))
    return str(path)


@pytest.mark.parametrize("machine", [None, "h200x8"])
def test_what_was_measured_is_filled_in(tmp_path: Path, machine: str | None) -> None:
    output = tmp_path / "mine.toml"
    more = ["--machine", machine] if machine else []
    done = run("calibrate", "--from", results(tmp_path), "-o", str(output), *more, "--name", "mine", "--json")
    assert done.exit_code == 0, done.output
    found, base = load_machine(str(output)), load_machine(machine or "h200")
    assert found.simulator is not None
    assert base.simulator is not None
    costs, assumed = found.simulator, base.simulator
    assert costs.read == (assumed.read[0], (*assumed.read[1][:2], 4320.0))
    assert (costs.event_ns, costs.task_ns) == (730, 240)
    assert costs.remote_event_ns - costs.event_ns == assumed.remote_event_ns - assumed.event_ns
    assert str(costs.calibrated).startswith("measured 2030-01-02T03:04:05+00:00 on NVIDIA H200 with: python tests/gpu")
    for key in ("read", "event_ns", "task_ns"):
        assert "NVIDIA H200" in costs.sources[key]
    assert costs.sources["ops"] == assumed.sources["ops"]
    kept = dataclasses.replace(found, name=base.name, simulator=base.simulator)
    assert kept == base
    same = ("ops", "ring_bytes", "hint_bytes", "poll_ns")
    assert [getattr(costs, key) for key in same] == [getattr(assumed, key) for key in same]
    about = json.loads(done.stdout)
    assert (about["machine"], about["read_bandwidth_gbs"], about["event_ns"]) == ("mine", 4320, 730)


def test_calibrate_from_prints_what_it_filled_in(tmp_path: Path) -> None:
    done = run("calibrate", "--from", results(tmp_path), "-o", str(tmp_path / "mine.toml"))
    assert done.exit_code == 0, done.output
    assert "h200: memory read at 4320 GB/s a device, task_ns 240, event_ns 730; measured 2030" in done.stdout


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"event_latency_ns": None, "task_start_ns": None}, "speed lacks event_latency_ns, task_start_ns: that part"),
        ({"gpu": None}, "speed lacks gpu"),
        ({"read_bandwidth": "fast"}, 'speed.read_bandwidth is "fast", want a number'),
        ({"read_bandwidth": True}, "speed.read_bandwidth is true, want a number"),
        ({"read_bandwidth": float("nan")}, "speed.read_bandwidth is NaN, want a number"),
        ({"read_bandwidth": 4320.0}, "speed.read_bandwidth is 4320 bytes a second, want 0.25 to 1 times the 4.8e+12"),
        ({"read_bandwidth": 5.5e12}, "speed.read_bandwidth is 5.5e+12 bytes a second, want 0.25 to 1 times"),
        ({"event_latency_ns": 0.7}, "speed.event_latency_ns is 0.7, want 20 to 50000"),
        ({"task_start_ns": -3}, "speed.task_start_ns is -3, want 20 to 50000"),
        ({"task_start_ns": 1e6}, "speed.task_start_ns is 1e+06, want 20 to 50000"),
        ({"date": 3}, "speed.date is 3, want words"),
        ({"gpu": "NVIDIA GH200 480GB"}, "speed.gpu is 'NVIDIA GH200 480GB', which is none of b200, h100, h200: give"),
    ],
)
def test_results_with_wrong_figures_are_refused(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    path, output = results(tmp_path, **changed), tmp_path / "mine.toml"
    line = refused("calibrate", "--from", path, "-o", str(output))
    assert f"{path}: {words}" in line
    assert not output.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "can't be read: No such file"),
        ("{", "is not valid JSON"),
        ("[]", "has no object 'speed', want what tests/gpu/run.py writes"),
        ('{"speed": 3}', "has no object 'speed'"),
    ],
)
def test_files_that_are_no_results_are_refused(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    assert f"{path}: {words}" in refused("calibrate", "--from", str(path), "-o", str(tmp_path / "m.toml"))


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    output = str(tmp_path / "m.toml")
    path = results(tmp_path)
    for args, words in (
        ([], "give engines to record, or --from RESULTS.json"),
        (["x.engine", "--machine", "h200"], "--machine says which description --from fills"),
        (["x.engine", "--from", path], f"--from {path} takes no engines: nothing is recorded"),
        (["--steps", "3", "--from", path], f"--from {path} takes no --steps: nothing is recorded"),
        (["--from", path, "--machine", "b200"], "speed.gpu is 'NVIDIA H200', --machine b200 has another GPU"),
        (["--from", path, "--machine", "cpu"], "--machine cpu: want one with GPUs"),
        (["--from", path, "--machine", "k80"], "machine 'k80' is unknown and no file"),
    ):
        assert words in refused("calibrate", *args, "-o", output)
