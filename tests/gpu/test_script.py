"""The script for a real GPU (tests/gpu), as far as it runs without one."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from gpu import folder, graphs, levels, model, ops, smoke
from gpu.cases import Trial, trials
from gpu.engines import results
from support import fake_cuda
from support import host_kernel as host_kernel_module
from support.engines import tiny_model
from support.gpu_host import EngineKernel, HostCard, host_kernel, table
from support.host_kernel import build as host_kernel_of
from support.host_kernel import compile_for_host, stand_in
from tilecompile.options import CompileOptions
from tilecompile.runtime import format as fmt
from tilecompile.runtime.folder.manifest import read_manifest
from tilecompile.runtime.folder.tables import load_tables

RUN = Path(__file__).with_name("run.py")

QUICK = ("rms_norm", "linear", "sample")


@pytest.mark.parametrize("op", [op if op in QUICK else pytest.param(op, marks=pytest.mark.slow) for op in ops.ALL])
def test_part_ops_passes_on_the_host(op: str) -> None:
    """Part `ops`, whose launches run the bodies' text on the host: tables, weights and comparisons are as on a GPU."""
    some = small(op)
    kernel = host_kernel(some)
    for trial in some:
        card = HostCard()
        found = ops.run_trial(card, kernel, kernel.of_node[trial.case.node.name].index, trial)
        assert found["wrong"] is None, found
        assert not card.held


def small(op: str) -> list[Trial]:
    """Trials of an op that are quick on the host."""
    return trials(op, 1, full_size=False)[:3] if op in QUICK else trials(op, 1)


def folder_of(path: Path, index: dict[str, Any], files: Path) -> Path:
    """A prepared folder with these parts."""
    folder.write(path, {"tilecompile": "", "architecture": "sm_90a", **index}, files)
    return path


def run_script(path: Path, only: str, kernel: Path | None, tmp_path: Path, **settings: object) -> dict[str, Any]:
    """The results of parts of the script, run with the driver of tests/support/fake_cuda."""
    out = tmp_path / "results.json"
    done = fake_cuda.run([RUN, path, "--only", only, "--json", out], kernel, **settings)
    assert done.code in (0, 1), done.err
    assert not done.violations, done.violations
    assert not any(done.live.values()), done.live
    return dict(json.loads(out.read_text()))


@pytest.mark.slow
def test_part_smoke_passes_on_the_host(tmp_path: Path) -> None:
    """The table made by hand, through the launch and the mailbox."""
    kinds, of_name = smoke.kinds()
    kernel = host_kernel_of(tmp_path / "host", kinds, {}, 232448)
    files = tmp_path / "files"
    files.mkdir()
    (files / "smoke.cubin").write_bytes(stand_in(kinds, 232448, "", {}).cubin)
    about = {"cubin": "smoke.cubin", "kinds": of_name, "shared": 232448}
    path = folder_of(tmp_path / "made", {"parts": ["smoke"], "smoke": about}, files)
    found = run_script(path, "a", kernel, tmp_path)["parts"]["smoke"]
    assert found["passed"], found
    assert found["steps"] == smoke.STEPS


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A prepared folder with a small model for one GPU of four workers, and its kernel for the host."""
    path = tmp_path_factory.mktemp("prepared")
    files = path / "files"
    files.mkdir()
    source = tiny_model(path / "model", max_position_embeddings=128)
    how: dict[str, Any] = {"seed": 1, "max_seq_len": 64, "weights": "bf16", "cache": "bf16"}
    options = CompileOptions(str(source), files / "tiny1", target="sm_90a", workers=4, **how)
    kernel = compile_for_host(options)
    kernel = kernel.rename(path / "kernel.so")
    shutil.rmtree(files / "tiny1.host")
    ids = [(7 * i) % 97 + 3 for i in range(20)]
    about = {"engines": {"tiny1": {"devices": 1}}, **results(files, source, ids, 64, seed=1)}
    return folder_of(path / "made", {"parts": ["tiny"], "tiny": about}, files), kernel


@pytest.mark.slow
def test_part_model_passes_on_the_host(tiny_folder: tuple[Path, Path], tmp_path: Path) -> None:
    """The script's comparison with a CPU engine holds for the kernel's text on the host."""
    found = run_script(tiny_folder[0], "c", tiny_folder[1], tmp_path)["parts"]["model"]
    assert found["passed"], found
    one = found["engines"]["tiny1"]
    assert one["replayed"]["positions"] == 20
    assert 0 < one["replayed"]["error"] < found["stated_error"] / 3
    assert one["replayed"]["decided"] >= 5


@pytest.mark.slow
def test_a_step_in_launches_gives_the_cpu_engines_logits(tiny_folder: tuple[Path, Path]) -> None:
    """Levels, their tables and weight runs: a step of `run_tasks` launches gives the CPU engine's logits."""
    files = tiny_folder[0].parent / "files"
    manifest = read_manifest(files / "tiny1")
    tables = load_tables(manifest)
    card = HostCard()
    sizes = manifest.arenas[0]
    pool = np.fromfile(files / "tiny1" / "weights" / "device0.bin", np.uint8)
    base = {name: card.put(np.zeros(sizes[name], np.uint8)) for name in ("activation", "cache", "io")}
    base["weight"] = card.put(pool)
    buffers = tables["buffers"]
    places = np.array([base[fmt.ARENAS[b["arena"]]] + int(b["offset"]) for b in buffers], np.uint64)
    launch, spans = graphs.upload(card, tables, places, base["weight"])
    assert len(spans) < 60
    assert sum(count for _, count in spans) == len(levels.instructions_of(tables, 0))
    with np.load(files / "tiny.npz") as file:
        ids, want = file["ids"].tolist(), file["logits"]
    io = manifest.data["io"]
    kernel = EngineKernel(tiny_folder[1])
    got = []
    for position, token in enumerate(ids[:3]):
        launch["step"] = card.put(graphs.step_record(position + 1))
        for name, value in (("ids", token), ("position", position)):
            table(int(places[io[name]]), np.dtype("<i4"), 1)[0] = value
        for first, count in spans:
            launch["first"] = first
            card.launch(kernel, count, launch)
        got.append(table(int(places[io["logits"]]), np.dtype("<f4"), manifest.vocab_size).copy())
    assert model.compare(np.array(got), want[:3])["error"] < 0.01


@pytest.mark.slow
def test_part_faults_meets_each_fault(tiny_folder: tuple[Path, Path], tmp_path: Path) -> None:
    """Each fault is met, and the engine is usable after it."""
    found = run_script(tiny_folder[0], "d", tiny_folder[1], tmp_path)["parts"]["faults"]
    assert found["passed"], found
    said = {one["fault"]: one["said"] for one in found["faults"]}
    assert "stalled: worker" in said["stall"]
    assert "sha256" in said["flipped byte"]


def share_folder(path: Path, devices: int, times: int = 0) -> tuple[Path, Path]:
    """A prepared folder with a small model for some devices, without weights, and its kernel for the host."""
    files = path / "files"
    files.mkdir()
    source = tiny_model(path / "model", max_position_embeddings=128)
    how: dict[str, Any] = {"no_weights": True, "max_seq_len": 64, "weights": "bf16", "cache": "bf16"}
    options = CompileOptions(str(source), files / "one", target="sm_90a", devices=devices, workers=3, **how)
    flags = (*host_kernel_module.FLAGS, *([f"-DTC_TIMES={times}"] if times else []))
    with mock.patch.object(host_kernel_module, "FLAGS", flags):
        kernel = compile_for_host(options).rename(path / "kernel.so")
    shutil.rmtree(files / "one.host")
    shutil.copyfile(files / "one" / "kernel.cubin", files / "times.cubin")
    predicted = [{"context": c, "step_ms": 1.0, "bytes": 1e6, "bytes_read": 2e6} for c in (8, 40)]
    about = {"engine": "one", "layers": 2, "of_layers": 2, "predicted": predicted, "times": "times.cubin"}
    about |= {"times_rows": times, "tasks": "times.cubin", "shared": 232448}
    index = {"parts": ["mini", "glm5"], "mini": {"h100": about}, "glm5": {"h100": about}}
    return folder_of(path / "made", index, files), kernel


GRAPHS = """
import json, sys
from pathlib import Path
from gpu import folder, graphs

class Quiet(graphs.Borrowed):
    def kernel(self, cubin, name, shared=0): return name
    def launch(self, kernel, grid, record, programmatic=False): assert grid > 0 and record["step"][0]
    def captured(self, work): return work()
    def seconds(self, work, repeats): return 1e-3

graphs.Borrowed = Quiet
print(json.dumps(graphs.run(folder.Folder(folder.read_index(Path(sys.argv[1])), Path(sys.argv[2])), 60, {})))
"""


@pytest.mark.slow
def test_part_share_runs_one_of_two_devices(tmp_path: Path) -> None:
    """One of two devices runs alone, and what it waits for comes from itself, later where that is asked for."""
    path, kernel = share_folder(tmp_path, 2)
    found = run_script(path, "share", kernel, tmp_path)["parts"]["share"]
    assert "error" not in found, found
    assert [(row["latency_ns"], row["context"]) for row in found["steps"]][:3] == [(0, 8), (0, 40), (2000, 8)]
    assert all(row["ms"] > 0 and row["over_predicted"] == row["ms"] for row in found["steps"])
    assert not found["passed"]  # there is no bandwidth to hold it against
    # The same engine's bodies as graphs: all but their launches, which the driver of the tests doesn't know.
    done = fake_cuda.run(["-c", GRAPHS, path, path.parent / "files"], kernel)
    assert done.code == 0, done.err
    done.clean()
    made = json.loads(done.out)
    assert [row["context"] for row in made["steps"]] == [8, 40]
    assert made["tasks"] > made["launches"] > 20
    assert made["steps"][0]["programmatic"] == 1.0


@pytest.mark.slow
def test_part_programs_times_each_program(tmp_path: Path) -> None:
    """Verify, prefill, extend and draft besides decode."""
    path, kernel = share_folder(tmp_path, 1)
    found = run_script(path, "programs", kernel, tmp_path)["parts"]["programs"]
    assert "error" not in found, found
    assert found["steps"][0]["context"] == 8
    assert all(set(row["ms"]) == {"decode", "verify", "prefill", "extend", "draft"} for row in found["steps"])
    assert found["steps"][0]["tokens"]["verify"] == 4


@pytest.mark.slow
def test_part_timeline_makes_a_trace_of_stamps(tmp_path: Path) -> None:
    """Stamps of the kernel's text become a timeline and a trace."""
    path, kernel = share_folder(tmp_path, 1, 4)
    measured = run_script(path, "f", kernel, tmp_path)
    found = measured["parts"]["timeline"]
    assert found["passed"], found
    one = found["steps"]["mini"]
    assert sum(one["timeline"]["shares"].values()) == pytest.approx(1)
    assert one["timeline"]["tasks"] > 50
    assert measured["speed"]["task_start_ns"] == one["task_start_ns"] > 0
    with gzip.open(tmp_path / one["trace"], "rt") as file:
        events = json.load(file)["traceEvents"]
    assert len([e for e in events if e.get("cat") == "work"]) == one["timeline"]["tasks"]


@pytest.mark.slow
def test_prepare_and_run_without_a_gpu(tmp_path: Path) -> None:
    """The two commands: what is prepared is there, and each part prints in a line why it can't run."""
    made = tmp_path / "made"
    command = [sys.executable, RUN.with_name("prepare.py"), "-o", made, "--only", "smoke,streams"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    index = folder.read_index(made)
    opened = folder.unpack(made, tmp_path / "files")
    names = [ring["cubin"] for ring in index["streams"]["rings"]]
    assert all(opened.bytes(name)[:4] == b"\x7fELF" for name in (*names, index["smoke"]["cubin"]))
    out = tmp_path / "results.json"
    command = [sys.executable, RUN, made, "--json", out]
    environment = {**os.environ, "LD_LIBRARY_PATH": "", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1, done.stderr
    parts = json.loads(out.read_text())["parts"]
    assert set(parts) == {"smoke", "bandwidth"}
    for part in parts.values():
        assert not part["passed"]
        assert "\n" not in part["error"]
    wrong = [sys.executable, RUN.with_name("prepare.py"), "-o", made, "--only", "smoke,z"]
    assert subprocess.run(wrong, capture_output=True).returncode == 2
