"""Requests whose steps are of several programs, on the CPU and in the interpreter; programs that aren't the first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tilecompile
from support.engines import Built
from support.two_programs import alternating, exchanged
from support.using import PROMPT
from tilecompile.interpret.interpreter import Interpreter
from tilecompile.runtime.folder.manifest import read_manifest
from tilecompile.runtime.format import NONE

Build = Callable[[str], Built]


@pytest.fixture(scope="module")
def two(built: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine "odd" with a second program."""
    return alternating(built("odd").path, tmp_path_factory.mktemp("two") / "engine")


@pytest.mark.parametrize("threads", [1, 2])
def test_the_kernel_alternates_between_programs(built: Build, two: Path, threads: int) -> None:
    """Each has an epoch of its own; tokens and logits are those of one program, bit for bit."""
    engine = built("odd")
    assert read_manifest(two).programs.only == NONE
    with tilecompile.load(engine.path, threads=threads) as one, tilecompile.load(two, threads=threads) as both:
        for _ in range(2):
            assert both.generate(engine.ids[:5], 30).tokens == one.generate(engine.ids[:5], 30).tokens
            assert np.array_equal(both.score(engine.ids), one.score(engine.ids))
        assert both.stats.launches == 1


def test_the_interpreter_alternates_between_programs(built: Build, two: Path) -> None:
    engine = built("odd")
    one, both = Interpreter(engine.path, 1), Interpreter(two, 2)
    assert both.generate(engine.ids[:5], 10) == one.generate(engine.ids[:5], 10)
    assert np.array_equal(both.score(engine.ids[:20]), one.score(engine.ids[:20]))


def test_a_program_runs_whatever_its_number(tiny: Path, tokens: list[int], tmp_path: Path) -> None:
    """Decode as the second program."""
    engine = exchanged(tiny, tmp_path / "engine")
    programs = read_manifest(engine).programs
    assert (programs.first, programs.launched) == (1, (0, 1, 2, 3, 4))
    with tilecompile.load(engine, threads=2) as loaded:
        assert loaded.generate(PROMPT, 200).tokens == tokens
    assert Interpreter(engine).generate(PROMPT, 4) == tokens[:4]
