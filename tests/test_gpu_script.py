"""The script for a real GPU (tests/gpu), as far as it goes without one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fake_cuda
import pytest
from conftest import tiny_model
from gpu import folder, ops, smoke
from gpu.cases import Trial, trials
from gpu.engines import results
from gpu_host import HostCard, host_kernel
from host_kernel import build as host_kernel_of
from host_kernel import compile_for_host, stand_in

from tilecompile.options import CompileOptions

RUN = Path(__file__).parent / "gpu" / "run.py"

QUICK = ("rms_norm", "linear")


@pytest.mark.parametrize("op", [op if op in QUICK else pytest.param(op, marks=pytest.mark.slow) for op in ops.ALL])
def test_ops_on_the_host(op: str) -> None:
    """Part `ops`, whose launches run the bodies' text on the host: tables, weights and comparisons are as on a GPU."""
    some = small(op)
    kernel = host_kernel(some)
    for trial in some:
        card = HostCard()
        found = ops.run_trial(card, kernel, kernel.of_node[trial.case.node.name].index, trial)
        assert found["wrong"] is None, found
        assert not card.held


def small(op: str) -> list[Trial]:
    """Trials of an op that the host runs in no time."""
    return trials(op, 1, full_size=False)[:3] if op in QUICK else trials(op, 1)


def folder_of(path: Path, index: dict[str, Any], files: Path) -> Path:
    """A prepared folder with these parts."""
    folder.write(path, {"tilecompile": "", "architecture": "sm_90a", **index}, files)
    return path


def run_script(path: Path, only: str, kernel: Path | None, tmp_path: Path, **settings: object) -> dict[str, Any]:
    """The results of parts of the script, run with the driver of tests/fake_cuda."""
    out = tmp_path / "results.json"
    done = fake_cuda.run([RUN, path, "--only", only, "--json", out], kernel, **settings)
    assert done.code in (0, 1), done.err
    assert not done.violations, done.violations
    assert not any(done.live.values()), done.live
    return dict(json.loads(out.read_text()))


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
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
def test_model(tiny_folder: tuple[Path, Path], tmp_path: Path) -> None:
    """The script's comparison with a CPU engine holds for the kernel's text on the host."""
    found = run_script(tiny_folder[0], "c", tiny_folder[1], tmp_path)["parts"]["model"]
    assert found["passed"], found
    one = found["engines"]["tiny1"]
    assert one["replayed"]["positions"] == 20
    assert 0 < one["replayed"]["error"] < found["stated_error"] / 3
    assert one["replayed"]["decided"] >= 5


@pytest.mark.slow
def test_faults(tiny_folder: tuple[Path, Path], tmp_path: Path) -> None:
    """Each fault is met, and the engine is usable after it."""
    found = run_script(tiny_folder[0], "d", tiny_folder[1], tmp_path)["parts"]["faults"]
    assert found["passed"], found
    said = {one["fault"]: one["said"] for one in found["faults"]}
    assert "stalled: worker" in said["stall"]
    assert "sha256" in said["flipped byte"]
