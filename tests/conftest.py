"""Engines that several test modules use: each is compiled once a session, when it is first asked for."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest
from reference import draw
from small import GLM5
from using import PROMPT

import tilecompile
from tilecompile.compile import compile_model
from tilecompile.options import CompileOptions

with contextlib.suppress(OSError, AttributeError, IndexError, TypeError):
    # TileLang's library takes the handler of memory faults when it is loaded, and reports where pytest doesn't look.
    # Loaded before pytest sets its own, it is the one that is replaced.
    _folder = importlib.util.find_spec("tvm_ffi").submodule_search_locations[0]  # type: ignore[union-attr,index]
    ctypes.CDLL(f"{_folder}/lib/libtvm_ffi.so", ctypes.RTLD_GLOBAL)

# A shell's background jobs ignore SIGINT, and so do their children: tests that interrupt would wait in vain.
signal.signal(signal.SIGINT, signal.default_int_handler)

TOKENS = 72
ODD: dict[str, Any] = {
    "num_attention_heads": 5,
    "hidden_size": 120,
    "n_routed_experts": 7,
    "num_experts_per_tok": 3,
    "vocab_size": 203,
    "q_lora_rank": 45,
    "kv_lora_rank": 35,
    "qk_nope_head_dim": 18,
    "qk_rope_head_dim": 6,
    "v_head_dim": 22,
    "index_n_heads": 3,
    "index_head_dim": 26,
    "intermediate_size": 133,
    "moe_intermediate_size": 49,
}
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({"num_hidden_layers": 3, "index_topk": 24, "vocab_size": 300}, 4),
    "odd": ({**ODD, "num_hidden_layers": 2, "index_topk": 16}, 2),
    "shared": ({**ODD, "num_hidden_layers": 4, "index_topk_pattern": "FSFS", "index_topk": 40}, 3),
}
"""What differs from `reference.SMALL`, and the number of workers. The text is longer than index_topk in each."""


@dataclass(frozen=True)
class Built:
    """An engine, and a text in which no choice of the model is a near-tie."""

    path: Path
    ids: list[int]


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


TINY_POSITIONS = 16384


def tiny_model(folder: Path, **overrides: Any) -> Path:
    """A folder with the config.json and tokenizer of the tiny model, for weights drawn with --seed."""
    folder.mkdir()
    config = {**GLM5, "vocab_size": fake.VOCAB, **overrides}
    (folder / "config.json").write_text(json.dumps(config))
    fake.tokenizer().save(str(folder / "tokenizer.json"))
    return folder
