"""Engines for GPUs in use, over the driver of fake_cuda.py: selections of a CPU engine replayed, bench and warm-up."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

import tilecompile
from support import fake_cuda
from support.engines import tiny_model
from support.host_kernel import compile_for_host
from tilecompile.compile import compile_model
from tilecompile.options import CompileOptions
from tilecompile.runtime.replay.selections import Selections

pytestmark = pytest.mark.slow

POSITIONS = 40
DEVICES = {"one": 1, "two": 2}

ERROR = 2e-3
"""Largest error of a logit, in RMS of the logits: activations in 16 bits, two layers, the same choices."""

SCORE = """
import sys
import numpy as np
import tilecompile
from tilecompile.runtime.replay.selections import Selections

engine, given, out = sys.argv[1:]
ids = np.load(given + ".ids.npy").tolist()
selections = Selections.load(given + ".npz")
with tilecompile.load(engine, stall_seconds=60) as e:
    own = e.selections(ids)
    found = {"own": e.score(ids), "own_replayed": e.score(ids, selections=own)}
    found |= {"replayed": e.score(ids, selections=selections), "own_again": e.score(ids)}
np.savez(out, **found)
own.save(out + ".selections.npz")
"""


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of 16-bit weights compiled for a CPU, one GPU, and two that have every other block of the
    context; and the GPUs' kernels for the host."""
    folder = tmp_path_factory.mktemp("gpus")
    model = str(tiny_model(folder / "model"))
    compile_model(
        CompileOptions(
            model,
            folder / "cpu",
            seed=1,
            max_seq_len=64,
            workers=2,
            weights="bf16",
            cache="bf16",
            target="cpu-portable",
        )
    )
    for name, devices, placement in (("one", 1, None), ("two", 2, "even")):
        options = CompileOptions(
            *(model, folder / name),
            seed=1,
            max_seq_len=64,
            devices=devices,
            workers=4 // devices,
            placement=placement,
            target="sm_90a",
            weights="bf16",
        )
        compile_for_host(options)
    return folder


def on_gpus(engines: Path, name: str, *arguments: object, **settings: object) -> fake_cuda.Done:
    """Runs Python where there are GPUs that run this engine."""
    kernel = engines / f"{name}.host" / "kernel.so"
    done = fake_cuda.run(arguments, kernel=kernel, timeout=500, sms=4, **{"devices": DEVICES[name], **settings})
    assert done.code == 0, done.err
    return done.clean()


@pytest.mark.parametrize("name", DEVICES)
def test_selections_of_a_processor_are_replayed_on_gpus(engines: Path, name: str, tmp_path: Path) -> None:
    with tilecompile.load(engines / "cpu") as engine:
        ids = np.random.default_rng(5).integers(0, engine.manifest.vocab_size, POSITIONS)
        chosen, want = engine.selections(ids), engine.score(ids)
    chosen.save(tmp_path / "cpu.npz")
    np.save(tmp_path / "cpu.ids.npy", ids)
    out = tmp_path / "out.npz"
    done = on_gpus(engines, name, "-c", SCORE, engines / name, tmp_path / "cpu", out)
    found, own = dict(np.load(out)), Selections.load(f"{out}.selections.npz")
    np.testing.assert_array_equal(found["own_replayed"], found["own"])
    np.testing.assert_array_equal(found["own_again"], found["own"])
    assert np.abs(found["replayed"] - want).max() / np.sqrt((want**2).mean()) < ERROR
    for table in own.positions.values():
        assert (np.sort(table, axis=1)[:, -1] <= np.arange(POSITIONS)).all()
    assert done.calls["cuLaunchKernelEx"] == DEVICES[name] * 5  # the engine's, and twice a replay's and the engine's


def test_bench_measures_an_engine_on_gpus(engines: Path) -> None:
    peer = shlex.join([sys.executable, "-c", 'print(\'{"ms_per_step": 3, "first_token_ms": 5}\')'])
    command = ["-m", "tilecompile", "bench", engines / "two", "--rounds", 2, "--context", 32, "--json"]
    command += ["--on-one-gpu", "--weights", "random:3", "--against", "cuda-graphs", "--peer", f"mine={peer}"]
    found = json.loads(on_gpus(engines, "two", *command, devices=1).out)
    assert found["machine"]["gpus"] == ["Fake GPU"]
    assert (found["threads"], len(found["rounds"]), found["contexts"]) == (0, 2, [30, 33])
    assert found["read_bandwidth_gbs"] == 3350  # of one GPU, though the plan has two devices
    assert found["read_kernel"] == "h100, data sheet"
    graphs, mine = found["peers"]
    assert graphs == {"name": "cuda-graphs", "error": "peer cuda-graphs: torch has no GPU here"}
    assert mine["ratio"] == 3 / found["ms_per_step"]


def test_warmup_measures_an_engine_on_gpus(engines: Path) -> None:
    command = ["-m", "tilecompile", "warmup", engines / "one", "--repeat", 1, "--against", "cuda-graphs", "--json"]
    found = json.loads(on_gpus(engines, "one", *command).out)
    assert (found["device"], found["machine"].split(",")[0]) == ("cuda", "Fake GPU")
    ours, graphs = found["systems"]
    assert ours["warm"]["seconds"] > 0
    assert ours["token"] is not None
    assert graphs["unavailable"] == "cuda-graphs: torch has no GPU here"
