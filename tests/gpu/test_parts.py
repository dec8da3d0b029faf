"""The parts of the script for a real GPU (tests/gpu) that need none: kernels that build, tables, figures, refusals."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpu import baseline, folder, kernels, levels, model, prepare, run, share, stamps
from gpu.cases import Trial, kinds_of
from gpu.records import TASK_ROW
from support.stream_cases import linear
from tilecompile.errors import EngineError, InputError
from tilecompile.models.registry import NAMED
from tilecompile.runtime.cuda.tables import device_tables
from tilecompile.runtime.folder.manifest import Manifest, read_manifest
from tilecompile.runtime.folder.rows import entries
from tilecompile.runtime.folder.tables import Tables, load_tables
from tilecompile.runtime.format import BLOCK, SHARED_BYTES
from tilecompile.targets.cuda.build import build, instructions
from tilecompile.targets.cuda.emit import once

HERE = Path(__file__).parent


def test_kernels_that_measure_build_without_spills() -> None:
    """Without spills; the ring's copies are those of the resident kernel."""
    made = kernels.stream_cubins("sm_90a", [(4096, 48), (16384, 12)])
    assert set(made) == {"stream-4096-48.cubin", "stream-16384-12.cubin", "measure.cubin"}
    held = instructions(build(once(kernels.stream_source(16384, 12)), "sm_90a").ptx)["stream"]
    assert any(name.startswith("cp.async.bulk.shared::cluster.global") for name in held)
    shapes = kernels.ring_shapes()
    assert (16384, 12) in shapes
    assert all(BLOCK.front_bytes + slot * count <= SHARED_BYTES for slot, count in shapes)


def test_tasks_begin_before_the_launch_before_them_ends() -> None:
    kinds, _, panels = kinds_of([Trial(linear("a", 1, 64, 128, "fp8"), 1)])
    source = kernels.tasks_source(kinds, panels, "sm_90a")
    held = instructions(build(once(source), "sm_90a").ptx)["run_tasks"]
    assert {"griddepcontrol.wait", "griddepcontrol.launch_dependents"} <= set(held)
    assert kernels.tasks_cubin(kinds, panels, "sm_90a")[:4] == b"\x7fELF"
    large = dataclasses.replace(kinds[0], body=dataclasses.replace(kinds[0].body, scratch=999999, panel_scratch=0))
    with pytest.raises(InputError, match="run_tasks takes 999999 bytes of shared memory beside the ring"):
        kernels.tasks_source([large], {}, "sm_90a")


@pytest.fixture(scope="module")
def engine(two_devices: Path) -> tuple[Manifest, Tables]:
    """A small engine for two devices."""
    manifest = read_manifest(two_devices)
    return manifest, load_tables(manifest)


@pytest.mark.parametrize("device", [0, 1])
def test_levels_keep_the_order_of_events(engine: tuple[Manifest, Tables], device: int) -> None:
    """What waits for another task of the device is in a later launch; all but sinks are in one."""
    _, tables = engine
    found = levels.levels(tables, device)
    everything = np.concatenate(found)
    assert sorted(everything) == sorted(levels.instructions_of(tables, device))
    rows = tables["instructions"]
    assert len(found) < len(np.unique(rows["op"][everything]))
    level = np.full(len(rows), -1)
    for i, those in enumerate(found):
        level[those] = i
    notifiers = defaultdict(list)
    for entry, owner in zip(*entries(rows, "notify"), strict=True):
        notifiers[int(tables["notifies"]["event"][entry])].append(owner)
    pairs = 0
    for entry, owner in zip(*entries(rows, "wait"), strict=True):
        for before in notifiers[int(tables["waits"]["event"][entry])]:
            if level[owner] >= 0 and level[before] >= 0:
                pairs += 1
                assert level[before] < level[owner]
    assert pairs > 30
    # A worker's order counts too: an instruction that touches the same memory is never in an earlier launch.
    streams = tables["streams"]
    for s in streams[(streams["program"] == 0) & (streams["device"] == device)]:
        mine = level[s["begin"] : s["end"]]
        assert len(mine) > 0


def test_task_rows_name_their_runs(engine: tuple[Manifest, Tables]) -> None:
    _, tables = engine
    places = np.arange(len(tables["buffers"]), dtype=np.uint64) << np.uint64(20)
    counters = np.zeros(2, np.int64)
    counters[:] = 1 << 40
    runs = device_tables(aligned(tables), 0, [0], counters.tolist(), places, [1 << 44, 1 << 45]).runs
    rows = levels.task_rows(levels.instructions_of(tables, 0), runs, TASK_ROW)
    assert int((rows["run_end"] - rows["run_begin"]).sum()) > 20
    for row in rows:
        assert (runs["instruction"][row["run_begin"] : row["run_end"]] == row["instruction"]).all()
        assert row["run_end"] - row["run_begin"] == tables["instructions"]["tape_count"][row["instruction"]]
    with pytest.raises(AssertionError, match="not next to each other"):
        levels.task_rows(np.array([3]), np.array([(3,), (4,), (3,)], [("instruction", "u4")]), TASK_ROW)


def aligned(tables: Tables) -> Tables:
    """Tables of an engine for CPUs, with weight runs as GPUs take them."""
    tape = tables["tape"].copy()
    for name in ("bytes", "offset"):
        tape[name] = tape[name] // 16 * 16
    return {**tables, "tape": tape}


def test_steps_are_read_from_stamps(engine: tuple[Manifest, Tables]) -> None:
    """Three steps in four rows, of which the first row only has the time at which the second step began."""
    manifest, tables = engine
    tasks = stamps.tasks_of(manifest, tables, manifest.workers)
    count, sink = len(tables["instructions"]), int(tasks.instruction[tasks.sink])
    table = np.zeros((4, count, 2), np.uint64)
    for step in range(4):
        begin = 1_000_000 + 50_000 * step
        table[step % 4, :, 0], table[step % 4, :, 1] = begin + 10_000, begin + 20_000
        table[step % 4, sink] = begin + 40_000, begin + 50_000
    found = stamps.spans(manifest, tables, np.roll(table, 1, 0))
    assert [step.duration for step in found] == [50_000, 50_000, 50_000]
    assert found[0].begin[tasks.sink] == 40_000
    others = np.arange(len(tasks)) != tasks.sink
    assert (found[0].begin[others & (found[0].wait_begin == 0)] == 10_000).all()
    assert stamps.clock_ns(table) == 10_000
    assert stamps.spans(manifest, tables, np.zeros((4, count, 2), np.uint64)) == []


def test_logits_are_compared_where_they_decide() -> None:
    want = np.zeros((3, 4), np.float32)
    want[:, 0], want[:, 1] = 1, [0, 0.99, 0]
    got = want.copy()
    assert model.compare(got, want)["error"] == 0
    assert model.compare(got, want)["decided"] == 2
    got[1, 1] += 0.02  # there the two best are nearly equal
    found = model.compare(got, want)
    assert (found["argmax_differs"], found["first_difference"]) == (0, None)
    assert found["error"] == pytest.approx(0.02 / np.sqrt((1 + 0.99**2) / 4), rel=1e-4)
    got[2, 3] = 2
    found = model.compare(got, want)
    assert (found["argmax_differs"], found["first_difference"]) == (1, 2)
    chosen = {"tokens": 32, "wrong": 0, "logprob_error": 1e-7}
    good: dict[str, Any] = {"repeats": 20, "repeats_equal": 20, "same_as_longer": True, "sampled": chosen}
    assert not model.passed({"replayed": found, **good})
    fine = model.compare(want, want)
    assert model.passed({"replayed": fine, **good})
    assert not model.passed({"replayed": fine, **good, "repeats_equal": 19})
    for wrong in ({"wrong": 1}, {"logprob_error": 1e-4}):
        assert not model.passed({"replayed": fine, **good, "sampled": chosen | wrong})
    assert not model.passed({"replayed": model.compare(np.full_like(want, np.nan), want), **good})


def test_roof_divides_bytes_by_time_and_bandwidth() -> None:
    predicted = {"context": 1024, "step_ms": 2.0, "bytes": 4e9, "bytes_read": 6e9}
    found = share.roof(predicted, 2.5, 4e12)
    assert found["roof_fraction"] == pytest.approx(0.4)
    assert found["read_fraction"] == pytest.approx(0.6)
    assert found["over_predicted"] == pytest.approx(1.25)
    assert "roof_fraction" not in share.roof(predicted, 2.5, None)


def test_the_baseline_has_the_shapes_of_a_share() -> None:
    """An eighth of GLM-5's heads, columns and vocabulary; both forms of its products compute the same step."""
    s, glm5 = baseline.GLM5, NAMED["glm-5"]
    assert (s.hidden, s.q_rank, s.latent, s.rope) == (6144, 2048, glm5.kv_lora_rank, glm5.qk_rope_head_dim)
    assert (s.nope, s.value, s.topk) == (glm5.qk_nope_head_dim, glm5.v_head_dim, glm5.index_topk)
    assert (s.index_heads, s.index_head) == (glm5.index_n_heads, glm5.index_head_dim)
    assert (s.experts, s.chosen) == (glm5.n_routed_experts, glm5.num_experts_per_tok)
    divided = (glm5.num_attention_heads, glm5.intermediate_size, glm5.moe_intermediate_size, glm5.vocab_size)
    assert (s.heads, s.dense, s.expert, s.vocab) == tuple(n // 8 for n in divided)
    assert s.dense_layers == glm5.mlp_layer_types.count("dense")
    small = baseline.Shapes(128, 64, 32, 16, 2, 16, 32, 4, 32, 16, 64, 16, 4, 16, 160, 1)
    for fp8 in (False, True):
        for context in (8, 64):
            made = baseline.Share(small, 2, context, fp8, "cpu")
            assert 0 <= int(made()) < 160
            assert torch.isfinite(made.layers[1](made.layers[0](made.x))).all()


def test_parts_are_chosen_by_letter_or_name() -> None:
    index = {"parts": ["ops", "tiny", "streams"]}
    assert run.chosen(None, index) == ["ops", "model", "faults", "bandwidth"]
    assert run.chosen("d,model", index) == ["model", "faults"]
    with pytest.raises(InputError, match="--only has 'z'; there are a, b, c, d, e, f and smoke, ops,"):
        run.chosen("z", index)
    with pytest.raises(
        InputError, match="share, baseline, graphs, mini, programs: the folder has nothing prepared for that"
    ):
        run.chosen("e", index)
    assert {part.needs for part in run.PARTS.values()} == set(prepare.PARTS)
    assert sum(part.seconds for part in run.PARTS.values()) + run.GRACE <= 640


def test_a_part_that_fails_says_so_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = folder.Folder({}, tmp_path)

    def fails(error: Exception) -> Any:
        def work(*args: object) -> None:
            raise error

        return work

    monkeypatch.setattr(baseline, "run", fails(EngineError("GPU 0: no")))
    assert run.run_part("baseline", made, {}, 1) == {"passed": False, "error": "GPU 0: no"}
    monkeypatch.setattr(baseline, "run", fails(ValueError("two\nlines")))
    assert run.run_part("baseline", made, {}, 1) == {"passed": False, "error": "ValueError: two"}


def test_speed_has_what_calibration_takes() -> None:
    about = {"gpu": "G", "driver": "1", "date": "d", "command": "c"}
    parts = {"bandwidth": {"read_bandwidth": 4e12, "event_latency_ns": 700.0}, "timeline": {"task_start_ns": 300.0}}
    found = run.speed(parts, about)
    assert found == {"read_bandwidth": 4e12, "event_latency_ns": 700.0, "task_start_ns": 300.0, **about}
    assert run.speed({"bandwidth": {"passed": False, "error": "x"}}, about) == about


def script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / "run.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_folders_that_were_not_prepared_are_refused(tmp_path: Path) -> None:
    """One line each, exit code 2."""
    index = tmp_path / "index.json"
    done = script(tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: {index}: No such file or directory; make it with tests/gpu/prepare.py -o FOLDER\n"
    for text, said in (
        ("{", "not valid JSON"),
        ('{"format": 1}', "format is 1, want"),
        ("[]", "format is None, want"),
    ):
        index.write_text(text)
        with pytest.raises(InputError, match=said):
            folder.read_index(tmp_path)
    files = tmp_path / "files"
    files.mkdir()
    (files / "a").write_text("b")
    folder.write(tmp_path, {"parts": []}, files)
    assert folder.unpack(tmp_path, tmp_path / "out").bytes("a") == b"b"
    (tmp_path / folder.ARCHIVE).write_bytes(b"x")
    with pytest.raises(InputError, match=r"files.tar.xz: can't be unpacked: "):
        folder.unpack(tmp_path, tmp_path / "out")


def test_a_folder_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "LIMIT", 100)
    files = tmp_path / "files"
    files.mkdir()
    (files / "a").write_bytes(np.random.default_rng(0).bytes(1000))
    with pytest.raises(InputError, match=r"takes \d+ bytes, want at most 100"):
        folder.write(tmp_path / "made", {}, files)


def test_results_say_that_nothing_was_measured() -> None:
    """Remove this test when the documents have figures."""
    assert "No CUDA figure has been measured." in (HERE / "RESULTS.md").read_text()
    assert json.loads(json.dumps(prepare.PARTS)) == list(prepare.PARTS)
