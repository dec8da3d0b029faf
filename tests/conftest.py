"""Engines that several test modules use: each is compiled once a session, when it is first asked for."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tilecompile
from support.engines import MODELS, TINY_POSITIONS, TOKENS, Built, tiny_model
from support.reference import draw
from support.using import PROMPT
from tilecompile.compile import compile_model
from tilecompile.options import CompileOptions

with contextlib.suppress(OSError, AttributeError, IndexError, TypeError):
    # TileLang's library installs a handler of memory faults when it is loaded, and reports where pytest doesn't read.
    # Loaded before pytest sets its own, it is the one that is replaced.
    _folder = importlib.util.find_spec("tvm_ffi").submodule_search_locations[0]  # type: ignore[union-attr,index]
    ctypes.CDLL(f"{_folder}/lib/libtvm_ffi.so", ctypes.RTLD_GLOBAL)

# A shell's background jobs ignore SIGINT, and so do their children: tests that interrupt would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """The engine of one of MODELS."""
    known: dict[str, Built] = {}

    def engine(name: str) -> Built:
        if name not in known:
            overrides, workers = MODELS[name]
            folder = tmp_path_factory.mktemp(name)
            config, model, ids, _, counted = draw(overrides, TOKENS)
            model.save_pretrained(folder / "model")
            (folder / "model" / "config.json").write_text(json.dumps(config))
            options = CompileOptions(
                str(folder / "model"), folder / "engine", max_seq_len=128, workers=workers, weights="f32"
            )
            compile_model(options)
            known[name] = Built(folder / "engine", ids[:counted].tolist())
        return known[name]

    return engine


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of a tiny drawn GLM-5 with MTP layer and tokenizer: four workers, steps of much less than 1 ms.

    Its context is so long that a generation without a limit lasts for many seconds.
    """
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model(folder / "model", max_position_embeddings=TINY_POSITIONS)
    options = CompileOptions(
        str(folder / "model"), folder / "engine", seed=1, max_seq_len=TINY_POSITIONS, workers=4, target="cpu-portable"
    )
    compile_model(options)
    return folder / "engine"


@pytest.fixture(scope="session")
def two_devices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of the tiny model for two devices of two workers."""
    folder = tmp_path_factory.mktemp("devices")
    model = tiny_model(folder / "model")
    options = CompileOptions(
        str(model), folder / "engine", seed=1, devices=2, workers=2, max_seq_len=64, target="cpu-portable"
    )
    compile_model(options)
    return folder / "engine"


@pytest.fixture(scope="session")
def tokens(tiny: Path) -> list[int]:
    """What the tiny engine generates after `using.PROMPT`."""
    with tilecompile.load(tiny) as loaded:
        return loaded.generate(PROMPT, 200).tokens


@pytest.fixture
def engine(tiny: Path) -> Iterator[tilecompile.Engine]:
    """The tiny engine, loaded with two threads."""
    with tilecompile.load(tiny, threads=2) as loaded:
        yield loaded
