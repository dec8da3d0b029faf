"""GPUs that can't run an engine are refused, in one line each; on a driver without a GPU (`fake_cuda/`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from typer.testing import CliRunner

from support import fake_cuda
from support.engines import tiny_model
from support.host_kernel import stand_in
from tilecompile.cli.app import app
from tilecompile.compile import compile_model
from tilecompile.engine import kernels
from tilecompile.errors import InputError
from tilecompile.options import CompileOptions
from tilecompile.runtime.cuda.options import CudaOptions, cuda_options


def engine(folder: Path, devices: int) -> Path:
    """An engine for sm_90a whose kernel can't run: of `devices` devices with two workers each."""
    options = CompileOptions(
        str(tiny_model(folder / "model")),
        folder / "engine",
        seed=1,
        devices=devices,
        workers=2,
        max_seq_len=64,
        target="sm_90a",
    )

    def make(kinds: Any, panels: Any, architecture: str, shared: int, *rest: Any) -> Any:
        return stand_in(kinds, shared, *rest)

    with mock.patch.object(kernels, "make_kernel", make):
        compile_model(options)
    return options.output


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine(tmp_path_factory.mktemp("two"), 2)


def refused(path: Path, *options: str, **settings: object) -> str:
    """The line that the command line ends with."""
    done = fake_cuda.run(["-m", "tilecompile", "generate", path, "--ids", "1,2", *options], **settings)
    assert (done.code, done.out) == (2, ""), done.err
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("error: ")
    done.clean()
    return done.err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fail": "cuInit:1:100"}, "the engine is for GPUs, and this machine has none that CUDA can use"),
        ({"capability": "10.0"}, "the engine is for sm_90a (compute capability 9.0), GPU 0 ("),
        ({"fail": "cuLaunchKernelEx:1:720"}, "its SMs can't hold 2 blocks at once; another process may be using them"),
    ],
)
def test_an_unfit_gpu_is_refused_with_the_reason(settings: dict[str, object], words: str, one: Path) -> None:
    assert words in refused(one, **settings)


def test_chosen_gpus_that_do_not_exist_are_refused(two: Path) -> None:
    assert "the engine is for 2 devices, asked for GPUs 0, 7; this machine has 2" in refused(
        two, "--gpus", "0,7", devices=2
    )
    assert "the engine is for 2 devices, asked for 1 GPUs" in refused(two, "--gpus", "1", devices=2)


def test_a_gpu_that_an_engine_uses_is_refused_to_another(one: Path, tmp_path: Path) -> None:
    text = """
import sys, tilecompile
from tilecompile.runtime.cuda.device import Gpu
from tilecompile.runtime.cuda.driver import attempt
attempt("cuInit", 0)
gpu = Gpu(0)
gpu.open()
try:
    tilecompile.load(sys.argv[1])
except tilecompile.EngineError as error:
    print(error)
gpu.close()
gpu.open()
gpu.close()
"""
    done = fake_cuda.run(["-c", text, one]).clean()
    assert done.code == 0, done.err
    assert "already runs an engine, in process " in done.out


def test_a_machine_without_driver_is_refused(one: Path, tmp_path: Path) -> None:
    if any(Path(folder, "libcuda.so.1").exists() for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")):
        return  # a machine with a driver: nothing to see
    result = CliRunner().invoke(app, ["generate", str(one), "--ids", "1"])
    assert result.exit_code == 2
    assert "this machine has no CUDA driver that can be loaded (libcuda.so.1): " in result.stderr


@pytest.mark.parametrize(
    ("gpus", "weights", "words"),
    [
        ([], None, r"gpus is \[\], want different numbers from 0"),
        ([0, 0], None, "want different numbers from 0"),
        ([-1], None, "want different numbers from 0"),
        ([True], None, "want different numbers from 0"),
        (None, "random", "weights is 'random', want \"random:SEED\""),
        (None, "random:-1", 'want "random:SEED" with a seed from 0 to 4294967295'),
        (None, "random:4294967296", "with a seed from 0 to 4294967295"),
    ],
)
def test_cuda_options_refuses_wrong_values(gpus: list[int] | None, weights: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        cuda_options(gpus, False, weights)


def test_cuda_options_parses_gpus_and_weights() -> None:
    assert cuda_options([3, 1], True, "random:7") == CudaOptions((3, 1), True, 7)
    assert cuda_options(None, False, None) == CudaOptions()


def test_load_refuses_options_of_the_other_target(one: Path, tiny: Path) -> None:
    for path, options, words in (
        (tiny, ["--on-one-gpu"], "are for GPUs, and "),
        (tiny, ["--gpus", "0"], "are for GPUs, and "),
        (one, ["--threads", "2"], "threads is 2, want none: "),
        (one, ["--gpus", "a"], "--gpus is 'a', want whole numbers"),
    ):
        result = CliRunner().invoke(app, ["generate", str(path), "--ids", "1", *options])
        assert result.exit_code == 2
        assert words in result.stderr
