"""timeline: the trace against the documented format, figures that add up, and an engine without anything of it."""

from __future__ import annotations

import ctypes
import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.commands import refused, run
from support.paths import TINY_CHECKPOINT
from support.trace_format import NS, check_format, slices
from tilecompile.compile import compile_model
from tilecompile.cost.step_time.path import critical_path
from tilecompile.cost.step_time.spans import Spans, Tasks, gaps_of, spans_of
from tilecompile.errors import EngineError
from tilecompile.measure.timeline import measure as measuring
from tilecompile.measure.timeline import rounds
from tilecompile.measure.timeline.perfetto import trace
from tilecompile.measure.timeline.record import profiling_library
from tilecompile.measure.timeline.summary import WAITS, summary
from tilecompile.options import CompileOptions
from tilecompile.runtime.engine import Engine
from tilecompile.runtime.folder.manifest import read_manifest
from tilecompile.runtime.load import load


@pytest.fixture(scope="module")
def libraries() -> dict[Path, ctypes.CDLL]:
    return {}


@pytest.fixture(autouse=True)
def built_once(libraries: dict[Path, ctypes.CDLL], monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine's profiling kernel is the same for any number of threads."""

    def library(engine: Engine) -> ctypes.CDLL:
        folder = engine.manifest.folder
        if folder not in libraries:
            libraries[folder] = profiling_library(engine)
        return libraries[folder]

    for module in (measuring, rounds):
        monkeypatch.setattr(module, "profiling_library", library)


@pytest.fixture
def engines(tiny: Path, two_devices: Path) -> dict[str, Path]:
    return {"tiny": tiny, "two devices": two_devices}


# The format.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e.remove(next(x for x in e if x["ph"] == "f")), "a flow with one end"),
        (lambda e: e.append(dict(next(x for x in e if x["ph"] == "s"))), "is there twice"),
        (lambda e: next(x for x in e if x.get("cat") == "work").update(dur=1e6), "overlap"),
        (lambda e: next(x for x in e if x["ph"] == "X").pop("pid"), "fields of"),
        (lambda e: e.remove(next(x for x in e if x["ph"] == "M")), "names"),
    ],
)
def test_the_format_check_finds_a_wrong_trace(change: Callable[[list[dict[str, Any]]], None], words: str) -> None:
    found = trace(two_workers(), {})
    check_format(json.dumps(found))
    change(found["traceEvents"])
    with pytest.raises(AssertionError, match=words):
        check_format(json.dumps(found))


# Summaries of spans.


def two_workers(thread: tuple[int, int] = (0, 1)) -> Spans:
    """Tasks a, b of worker 0 and c, sink of worker 1: c waits for a, the sink for b."""
    tasks = Tasks(
        instruction=np.arange(4),
        worker=np.array([0, 0, 1, 1]),
        device=np.array([0, 0, 0, 0]),
        thread=np.array(thread).repeat(2),
        kinds=["k1_linear", "k1_linear", "k2_rope", "commit"],
        ops=["linear", "linear", "rope", "commit"],
        operators=["a", "b", "c", "commit"],
        tiles=np.zeros((4, 4), np.int64),
        bytes=np.array([4000, 8000, 0, 0]),
        consumer=np.array([2, 3]),
        producer=np.array([0, 1]),
        sink=3,
    )
    begins, ends = np.array([10.0, 110, 120, 420]), np.array([110.0, 400, 200, 430])
    return spans_of(tasks, begins, ends, 430.0)


def test_gaps_are_attributed_to_their_causes() -> None:
    gaps = gaps_of(two_workers())
    assert gaps.latest.tolist() == [-1, -1, 0, 1]
    assert gaps.event.tolist() == [0, 0, 110, 200]
    assert gaps.loop.tolist() == [10, 0, 10, 20]
    assert not gaps.thread.any()
    shared = dataclasses.replace(two_workers().tasks, thread=np.zeros(4, np.int64))
    gaps = gaps_of(spans_of(shared, np.array([0.0, 300, 150, 420]), np.array([100.0, 400, 290, 430]), 430.0))
    assert gaps.before.tolist() == [-1, 2, 0, 1]
    assert gaps.thread.tolist() == [0, 190, 0, 0]
    assert gaps.event.tolist() == [0, 0, 100, 110]
    assert gaps.loop.tolist() == [0, 10, 50, 20]


def test_a_task_begins_after_those_that_notify_its_events() -> None:
    """A task that doesn't wait is recorded from the end of the one before, when short ones may not have begun."""
    begins, ends = np.array([10.0, 110, 120, 420]), np.array([110.0, 400, 200, 430])
    begins[2] = 4
    spans = spans_of(two_workers().tasks, begins, ends, 430.0)
    assert spans.begin.tolist() == [10, 110, 10, 420]
    check_format(json.dumps(trace(spans, {})))


def test_the_critical_path_lasts_as_long_as_the_step() -> None:
    spans = two_workers()
    path = critical_path(spans, gaps_of(spans))
    assert [(link.task, link.begin, link.until, link.via, link.gap) for link in path] == [
        (0, 10, 110, "start", 10),
        (1, 110, 400, "thread", 0),
        (3, 420, 430, "event", 20),
    ]
    assert sum(link.until - link.begin + link.gap for link in path) == spans.duration


def test_summary_gives_the_figures_of_known_spans() -> None:
    found = summary(two_workers())
    first, second = found["workers"]
    assert (first["work_us"], first["loop_us"], first["end_us"]) == pytest.approx((0.39, 0.01, 0.03))
    assert (second["work_us"], second["event_us"], second["loop_us"], second["end_us"]) == (
        pytest.approx((0.09, 0.31, 0.03, 0.0))
    )
    ops = {op["op"]: op for op in found["ops"]}
    assert list(ops) == ["linear", "rope", "commit"]
    assert (ops["linear"]["bytes"], ops["linear"]["gbs"]) == (12000, pytest.approx(12000 / 390))
    assert (ops["linear"]["path_tasks"], ops["rope"]["path_tasks"], ops["rope"]["gbs"]) == (2, 0, None)
    assert found["waits"][0] == {"producer": "linear", "consumer": "commit", "tasks": 1, "us": pytest.approx(0.2)}
    assert found["path"]["after_event"] == {"tasks": 1, "us": pytest.approx(0.02)}


def test_counter_is_the_rate_of_all_workers() -> None:
    counters = [e for e in trace(two_workers(), {})["traceEvents"] if e["ph"] == "C"]
    assert [(e["ts"], e["args"]["GB/s"]) for e in counters] == [(0.01, 40.0), (0.11, round(8000 / 290, 3)), (0.4, 0.0)]


# Recorded steps.


def add_up(found: dict[str, Any]) -> None:
    """Every division of the step adds up to it."""
    step = found["step_us"]
    parts = ("work", *WAITS)
    for worker in found["workers"]:
        assert sum(worker[f"{part}_us"] for part in parts) == pytest.approx(step)
        assert all(worker[f"{part}_us"] >= 0 for part in parts)
    assert sum(found["shares"].values()) == pytest.approx(1)
    work = sum(worker["work_us"] for worker in found["workers"])
    assert sum(op["work_us"] for op in found["ops"]) == pytest.approx(work) == sum(found["thread_work_us"])
    assert sum(op["tasks"] for op in found["ops"]) == found["tasks"]
    path = found["path"]
    assert sum(op["path_us"] for op in found["ops"]) == pytest.approx(path["work_us"])
    gaps = [path[f"after_{via}"] for via in ("event", "thread", "start")]
    assert path["work_us"] + sum(gap["us"] for gap in gaps) == pytest.approx(step)
    assert sum(gap["tasks"] for gap in gaps) == path["tasks"] == sum(op["path_tasks"] for op in found["ops"])
    assert sum(pair["us"] for pair in found["waits"]) == pytest.approx(sum(w["event_us"] for w in found["workers"]))
    assert all(us <= step * 1.000001 for us in found["thread_work_us"])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["tiny", "two devices"])
def test_a_recorded_step_has_a_trace_and_figures_that_add_up(
    engines: dict[str, Path], name: str, threads: int, tmp_path: Path
) -> None:
    output = tmp_path / "trace.json"
    arguments = ("--threads", str(threads), "--context", "40", "--steps", "64", "--json")
    result = run("timeline", str(engines[name]), "-o", str(output), *arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    add_up(found)
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    made = check_format(output.read_text())
    assert made["otherData"]["source"] == "measured"
    with load(engines[name]) as engine:
        program, streams = engine.manifest.program("decode"), engine.tables["streams"]
        mine = streams[streams["program"] == 0]
        wanted = {i for s in mine for i in range(s["begin"], s["end"])}
        weights = engine.tables["tape"]["bytes"]
        rows = engine.tables["instructions"]
    work = slices(made["traceEvents"], "work")
    assert len(work) == program["tasks"] == found["tasks"]
    assert {e["args"]["instruction"] for e in work} == wanted
    assert Counter(e["args"]["op"] for e in work) == program["ops"]
    for e in work:
        row = rows[e["args"]["instruction"]]
        tape = weights[int(row["tape_begin"]) : int(row["tape_begin"]) + int(row["tape_count"])]
        assert (e["args"]["bytes"], e["args"]["tile"]) == (int(tape.sum()), row["tile"].tolist())
    tracks = defaultdict(float)
    for e in slices(made["traceEvents"], "work", "wait"):
        tracks[e["pid"], e["tid"]] += e["dur"]
    assert len(tracks) == len(mine) == 4
    assert len({pid for pid, _ in tracks}) == {"tiny": 1, "two devices": 2}[name]
    assert list(tracks.values()) == pytest.approx([found["step_us"]] * 4, abs=2 * NS)
    flows = [e for e in made["traceEvents"] if e["ph"] == "s"]
    assert len(flows) == sum(1 for i in wanted if rows[i]["wait_count"])
    between = {e["pid"] for e in flows}
    assert between == {pid for pid, _ in tracks}
    if threads == 1:
        assert found["shares"]["thread"] > 0.2  # three of the four workers wait for the thread at any time


@pytest.mark.parametrize("threads", [1, 2])
def test_a_recorded_round_has_the_steps_of_its_programs(tiny: Path, threads: int, tmp_path: Path) -> None:
    output = tmp_path / "trace.json"
    arguments = ("--threads", str(threads), "--context", "40", "--drafts", "3", "--json")
    result = run("timeline", str(tiny), "-o", str(output), *arguments)
    assert result.exit_code == 0, result.output
    check_round(json.loads(result.stdout), check_format(output.read_text()), tiny)


@pytest.mark.parametrize("drafts", [1, 3])
def test_a_simulated_round_has_the_steps_of_its_programs(tiny: Path, drafts: int, tmp_path: Path) -> None:
    output = tmp_path / "trace.json"
    arguments = ("--simulated", "h200", "--context", "40", "--drafts", str(drafts))
    result = run("timeline", str(tiny), "-o", str(output), *arguments, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    check_round(found, check_format(output.read_text()), tiny)
    assert [step["tokens"] for step in found["steps"]] == [drafts + 1, drafts + 1, *[1] * (drafts - 1)]
    shown = run("timeline", str(tiny), *arguments).stdout
    assert f"a simulated round with {drafts} draft(s) at context 40" in shown
    assert "verify" in shown


def check_round(found: dict[str, Any], made: dict[str, Any], engine: Path) -> None:
    """A round of all programs, whose steps fill it one after another, each with all tasks of its program."""
    assert [step["program"] for step in found["steps"]] == ["verify", "extend", *["draft"] * (found["drafts"] - 1)]
    assert found["steps"][0]["tokens"] == found["drafts"] + 1
    shown = slices(made["traceEvents"], "step")
    assert [e["args"] for e in shown] == [{key: s[key] for key in ("program", "tokens")} for s in found["steps"]]
    work = slices(made["traceEvents"], "work")
    begin = 0.0
    for step, e in zip(found["steps"], shown, strict=True):
        add_up(step)
        assert step["begin_us"] == pytest.approx(begin)
        begin += step["step_us"]
        assert step["tasks"] == read_manifest(engine).program(step["program"])["tasks"]
        inside = [w for w in work if e["ts"] - NS <= w["ts"] and w["ts"] + w["dur"] <= e["ts"] + e["dur"] + NS]
        assert len(inside) >= step["tasks"]
    assert found["round_us"] == pytest.approx(begin)
    assert len(work) == sum(step["tasks"] for step in found["steps"])


def test_the_summary_is_printed_with_stages_on_stderr(tiny: Path) -> None:
    result = run("timeline", str(tiny), "--context", "40", "--threads", "1", "--steps", "64")
    assert result.exit_code == 0, result.output
    for words in ("workers at work", "their thread", "threads at work", "critical path:", "expert_linear"):
        assert words in result.stdout
    for stage in ("load", "build", "steps"):
        assert stage in result.stderr


def test_an_engines_kernel_carries_nothing_of_the_recording(tiny: Path, libraries: dict[Path, ctypes.CDLL]) -> None:
    assert b"tc_profile" not in (tiny / "kernel.so").read_bytes()
    assert "tc_profile" in (tiny / "kernel.cpp").read_text()
    with load(tiny) as engine:
        assert not hasattr(engine.cpu.library, "tc_profile")
        assert hasattr(measuring.profiling_library(engine), "tc_profile")


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--context", "1"), "context is 1, want 2 to 16384"),
        (("--context", "16385"), "context is 16385, want 2 to 16384"),
        (("--steps", "63"), "--steps is 63, want 64 to 1000000"),
        (("--threads", "5"), "threads"),
        (("--steps", "64", "--simulated", "h100"), "--steps 64: of a simulated timeline there is one step"),
        (("--drafts", "4"), "--drafts is 4, want 1 to 3 (those of the engine)"),
        (("--drafts", "0"), "--drafts is 0, want 1 to 3"),
        (("--drafts", "2", "--steps", "64"), "--steps 64: of a round all steps are shown"),
        (("--simulated", "moon"), "machine 'moon' is unknown"),
        (("--simulated", "cpu"), "machine cpu states no costs"),
        (("--simulated", "h100", "--threads", "2"), "threads is 2, but on machine h100 every worker runs for itself"),
        (("-o", "{folder}"), "is a folder, want a file"),
        (("-o", "{folder}/no/t.json"), "is not there"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(
    tiny: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    output = () if "-o" in arguments else ("-o", str(tmp_path / "t.json"))
    given = [argument.format(folder=tmp_path) for argument in arguments]
    result = run("timeline", str(tiny), *given, *output)
    assert (result.exit_code, result.stdout) == (2, "")
    errors = result.stderr.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert words in errors[0]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_engine_is_refused(tmp_path: Path) -> None:
    assert "nowhere" in refused("timeline", str(tmp_path / "nowhere"))


def test_an_engine_that_can_not_record_is_refused(tiny: Path, tmp_path: Path) -> None:
    with load(tiny) as engine:
        engine.manifest = dataclasses.replace(engine.manifest, folder=tmp_path)
        (tmp_path / "kernel.cpp").write_text("int x;")
        with pytest.raises(EngineError, match=r"kernel\.cpp: doesn't know how to record a timeline"):
            profiling_library(engine)


def test_help_has_an_example() -> None:
    assert "tilecompile timeline tiny.engine -o trace.json" in run("timeline", "--help").stdout


# The measured step.


@pytest.mark.slow
def test_the_total_is_the_measured_step(tmp_path: Path) -> None:
    """On the checkpoint of the examples, whose steps are so short that recording them shows; best of some tries, since
    other work on the machine may slow one of the two kernels for a while."""
    compile_model(CompileOptions(str(TINY_CHECKPOINT), tmp_path / "engine"))
    apart = []
    for _ in range(5):
        found = json.loads(run("timeline", str(tmp_path / "engine"), "--context", "256", "--json").stdout)
        apart.append(found["step_us"] / found["measured"]["step_us"] - 1)
        if abs(apart[-1]) <= 0.03:
            return
    pytest.fail(f"the summary's total is apart from the measured step by {apart}")
