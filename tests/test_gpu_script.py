"""The script for a real GPU (tests/gpu), as far as it goes without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_cuda
import pytest
from gpu import folder, ops, smoke
from gpu.cases import Trial, trials
from gpu_host import HostCard, host_kernel
from host_kernel import build as host_kernel_of
from host_kernel import stand_in

RUN = Path(__file__).parent / "gpu" / "run.py"

QUICK = ("rms_norm", "cache_append", "linear", "expert_linear")


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
    found = trials(op, 1)
    return found if op not in QUICK else found[:4]


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
