"""Stages: each is timed, reported as it begins, and its value written where a dump is asked for."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from support.engines import tiny_model
from tilecompile.compile import compile_model
from tilecompile.engine.stages import STAGES, Stages
from tilecompile.errors import InputError
from tilecompile.options import CompileOptions


def test_a_value_is_returned_timed_reported_and_written(tmp_path: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    stages = Stages(tmp_path / "dump", lambda *report: reports.append(report))

    def slow(value: str, factor: int) -> str:
        time.sleep(0.02)
        return value * factor

    assert stages.run("events", slow, "a", factor=3) == "aaa"
    assert stages.each("trace", slow, ["b", "c"], 2) == ["bb", "cc"]
    assert reports == [("events", 0, 1), ("trace", 0, 2), ("trace", 1, 2)]
    assert (tmp_path / "dump" / "05-events.txt").read_text() == "aaa"
    assert (tmp_path / "dump" / "01-trace.txt").read_text() == "bbcc"
    assert 0.02 <= stages.seconds["events"] < stages.seconds["trace"]
    assert sum(stages.seconds.values()) <= stages.elapsed


def test_stages_without_a_name_are_not_reported_and_counted_ones_report_themselves() -> None:
    reports: list[tuple[str, int, int]] = []
    stages = Stages(None, lambda *report: reports.append(report))
    stages.run("fuse", lambda: None)
    assert reports == []

    def pack(advance: object) -> None:
        assert advance == stages.advance
        stages.advance(10, 2000)

    stages.run("pack", pack, stages.advance)
    assert reports == [("pack", 10, 2000)]


def test_stages_share_a_file_in_their_order_and_a_second_run_replaces_the_first(tmp_path: Path) -> None:
    stages = Stages(tmp_path)
    stages.run("choose", lambda: "chosen\n")
    for text in ("first", "second"):
        stages.each("split_over_workers", lambda item, text=text: f"{text} {item}\n", [1, 2])
        stages.show("placement_table", lambda item, text=text: f"table of {text}\n", [1])
    assert (tmp_path / "03-place.txt").read_text() == "chosen\nsecond 1\nsecond 2\ntable of second\n"


def test_files_of_an_earlier_dump_go_when_the_first_value_is_written(tmp_path: Path) -> None:
    old, other = tmp_path / "08-emit.cu", tmp_path / "notes.txt"
    for path in (old, other):
        path.write_text("old")
    stages = Stages(tmp_path)
    stages.run("open", lambda: 1)
    assert old.exists()
    stages.run("trace", lambda: 1)
    assert not old.exists()
    assert other.exists()


def test_what_is_only_shown_is_not_computed_without_a_dump(tmp_path: Path) -> None:
    Stages().show("pack_text", lambda item: pytest.fail("it is computed"), [1])


def test_a_dump_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^--dump .*: can't be written: "):
        Stages(tmp_path / "file").run("trace", lambda: 1)


def test_a_compilation_dumps_every_stage(tmp_path: Path) -> None:
    model, reports = tiny_model(tmp_path / "model"), []
    options = CompileOptions(str(model), tmp_path / "e", seed=1, max_seq_len=64, workers=2, dump=tmp_path / "dump")
    compiled = compile_model(options, lambda *report: reports.append(report))
    files = sorted(path.name for path in (tmp_path / "dump").iterdir())
    assert files == [
        "01-trace.txt",
        "02-fuse.txt",
        "03-place.txt",
        "04-tile.txt",
        "05-events.txt",
        "06-schedule.txt",
        "07-verify.txt",
        "08-emit.cpp",
        "09-pack.txt",
    ]
    assert set(files) <= {stage.file for stage in STAGES.values()}
    assert all(path.stat().st_size for path in (tmp_path / "dump").iterdir())
    assert (tmp_path / "dump" / "06-schedule.txt").read_text() == (tmp_path / "e" / "listing.txt").read_text()
    assert (tmp_path / "dump" / "08-emit.cpp").read_text() == (tmp_path / "e" / "kernel.cpp").read_text()
    names = list(dict.fromkeys(stage for stage, _, _ in reports))
    assert names == ["trace", "tile", "events", "schedule", "verify", "build", "pack"]
    assert 0 < reports[-1][1] <= reports[-1][2]  # bytes of the pool; the last may be padding
    assert {"open", "trace", "fuse", "place", "tile", "events", "schedule", "verify", "emit"} <= set(compiled.stages)
    assert sum(compiled.stages.values()) <= compiled.seconds
