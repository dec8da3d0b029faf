"""A token's bits depend on nothing but the text: not on the run, the threads, their timing, or how the text is fed."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tilecompile
from support.chaos import chaotic, rehashed
from support.engines import Built
from tilecompile.errors import InputError
from tilecompile.targets.cpu.build import COMMON, find_compiler

Build = Callable[[str], Built]
SHORT = 40
"""Tokens of the runs that are repeated often; the indexer selects from 24 on."""


@pytest.fixture(scope="module")
def chaos(built: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine with delays at every instruction."""
    return chaotic(built("plain").path, tmp_path_factory.mktemp("chaos") / "engine", seed=1)


@pytest.fixture(scope="module")
def want(built: Build) -> np.ndarray:
    """Logits of the engine's text, by one thread."""
    engine = built("plain")
    with tilecompile.load(engine.path, threads=1) as kernel:
        return kernel.score(engine.ids)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_repeated_runs_give_the_same_bits(threads: int, built: Build, want: np.ndarray) -> None:
    engine = built("plain")
    for _ in range(4):
        with tilecompile.load(engine.path, threads) as kernel:
            for _ in range(5):
                assert np.array_equal(kernel.score(engine.ids[:SHORT]), want[:SHORT])


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_delays_change_no_bits(threads: int, built: Build, chaos: Path, want: np.ndarray) -> None:
    engine = built("plain")
    for _ in range(4):
        with tilecompile.load(chaos, threads) as kernel:
            for _ in range(5):
                assert np.array_equal(kernel.score(engine.ids[:SHORT]), want[:SHORT])
            assert kernel.stats.launches == 1


def test_delays_reveal_missing_edges(built: Build, chaos: Path, want: np.ndarray, tmp_path: Path) -> None:
    """Without its waits, those of the sink excepted, a program gives the right result only by chance."""
    shutil.copytree(chaos, tmp_path / "engine")
    path = tmp_path / "engine" / "tables" / "instructions.npy"
    instructions = np.load(path)
    instructions["wait_count"][instructions["kind"] != 0] = 0
    np.save(path, instructions)
    # In a process of its own: such a program may corrupt memory.
    text = """
import sys, numpy, tilecompile
with tilecompile.load(sys.argv[1], 4) as kernel:
    numpy.save(sys.argv[2], kernel.score([int(i) for i in sys.argv[3:]]))
"""
    ids = built("plain").ids[:SHORT]
    command = [sys.executable, "-c", text, rehashed(tmp_path / "engine"), tmp_path / "logits.npy", *map(str, ids)]
    code = subprocess.run(command, check=False).returncode
    assert code <= 0, "it may crash, but not end with an error"
    if code == 0:
        assert not np.array_equal(np.load(tmp_path / "logits.npy"), want[:SHORT])


def test_delays_change_no_tokens(built: Build, chaos: Path) -> None:
    prompt = built("plain").ids[:7]
    with tilecompile.load(built("plain").path) as kernel:
        want = kernel.generate(prompt, max_new_tokens=100).tokens
    with tilecompile.load(chaos, 4) as kernel:
        for _ in range(3):
            kernel.reset()
            assert kernel.generate(prompt, max_new_tokens=100).tokens == want


@pytest.mark.parametrize("cut", [1, 23, 24, 25, 71])
@pytest.mark.parametrize("kind", ["plain", "chaos"])
def test_a_text_in_two_pieces_gives_the_same_bits(
    cut: int, kind: str, built: Build, chaos: Path, want: np.ndarray
) -> None:
    ids = built("plain").ids
    with tilecompile.load(chaos if kind == "chaos" else built("plain").path) as kernel:
        first = kernel.score(ids[:cut])
        second = kernel.score(ids[cut:], start=cut)
        assert np.array_equal(np.concatenate([first, second]), want)


def test_a_text_can_be_scored_in_many_pieces_and_from_earlier_on(built: Build, want: np.ndarray) -> None:
    ids = built("plain").ids
    with tilecompile.load(built("plain").path) as kernel:
        rows = [kernel.score(ids[i : i + 9], start=i) for i in range(0, len(ids), 9)]
        assert np.array_equal(np.concatenate(rows), want)
        assert np.array_equal(kernel.score(ids[30:], start=30), want[30:])
        kernel.score([*ids[:20], ids[20] + 1], start=0)
        assert np.array_equal(kernel.score(ids[20:40], start=20), want[20:40])


def test_a_start_that_was_not_fed_is_refused(built: Build, want: np.ndarray) -> None:
    ids = built("plain").ids
    with tilecompile.load(built("plain").path) as kernel:
        with pytest.raises(InputError, match="start is 1, want 0 to 0"):
            kernel.score(ids, start=1)
        kernel.score(ids[:10])
        for wrong in (11, -1):
            with pytest.raises(InputError, match=f"start is {wrong}, want 0 to 10"):
                kernel.score(ids[10:], start=wrong)
        assert np.array_equal(kernel.score(ids[10:12], start=10), want[10:12]), "a refusal must not lose the place"
        with pytest.raises(InputError, match="117 ids from position 12 are too many, the engine's max_seq_len is 128"):
            kernel.score([1] * 117, start=12)
        with pytest.raises(InputError, match="start is True, want a whole number"):
            kernel.score(ids, start=True)
        kernel.generate(ids[:20], max_new_tokens=2)
        with pytest.raises(InputError, match="start is 22, want 0 to 21"):
            kernel.score(ids[22:], start=22)
        assert np.array_equal(kernel.score(ids), want)


def test_chaos_is_in_the_chaos_build_alone(built: Build, chaos: Path) -> None:
    """The chaos build delays; without the macro the source is, to the compiler, the one without the marks."""
    assert ctypes.CDLL(str(chaos / "kernel.so")).chaos_seed() == 1
    assert not hasattr(ctypes.CDLL(str(built("plain").path / "kernel.so")), "chaos_seed")
    source = (built("plain").path / "kernel.cpp").read_text()
    assert source == (chaos / "kernel.cpp").read_text()
    lines = source.split("\n")
    marks = [i for i, line in enumerate(lines) if "TC_CHAOS" in line]
    begin = marks[0]
    assert lines[begin] == "#ifndef TC_CHAOS"
    assert lines[begin + 2] == "#endif"
    unmarked = "\n".join(lines[:begin] + [line for line in lines[begin + 3 :] if "TC_CHAOS" not in line])
    assert len(marks) >= 10
    assert preprocessed(source) == preprocessed(unmarked)


def preprocessed(source: str) -> list[str]:
    """The lines that the compiler sees of a source of ours; its includes, which need not be equal, are left out."""
    own = "\n".join(line for line in source.split("\n") if not line.startswith("#include"))
    flags = [flag for flag in COMMON if flag.startswith("-std")]
    command = [find_compiler(), *flags, "-E", "-P", "-x", "c++", "-"]
    done = subprocess.run(command, input=own, capture_output=True, text=True, check=True)
    return [line.strip() for line in done.stdout.split("\n") if line.strip()]
