"""Models whose later drafts share the first one's selection: on one device and several, and what their engines run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tilecompile
from support.held_out import held_out
from support.paths import TINY_CHECKPOINT
from tilecompile import SamplingParams
from tilecompile.compile import compile_model
from tilecompile.engine.graph_json import read_graph
from tilecompile.interpret.interpreter import Interpreter
from tilecompile.options import CompileOptions
from tilecompile.runtime.folder.manifest import read_manifest

TOPK = 64
"""`index_topk` of the checkpoint: longer contexts are selected from."""

DEVICES: dict[str, dict[str, Any]] = {
    "one": {"workers": 2},
    "even": {"devices": 2, "placement": "even", "workers": 2},
    "tensor_parallel": {"devices": 2, "placement": "tensor_parallel", "workers": 1},
    "roles": {"devices": 2, "placement": "roles", "workers": 1},
}
Engines = Callable[[str], Path]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    """Engines of the trained checkpoint with `index_share_for_mtp_iteration`, by a name of DEVICES; `plain` without."""
    folder = tmp_path_factory.mktemp("sharing")
    for file in TINY_CHECKPOINT.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((TINY_CHECKPOINT / "config.json").read_text())
    assert config["index_topk"] == TOPK
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "index_share_for_mtp_iteration": True}))

    def compiled(name: str) -> Path:
        path = folder / f"{name}.engine"
        if not path.exists():
            options = DEVICES["one" if name == "plain" else name]
            source = TINY_CHECKPOINT if name == "plain" else folder
            compile_model(CompileOptions(str(source), path, max_seq_len=512, prefill=7, **options))
        return path

    return compiled


@pytest.fixture(
    scope="module",
    params=["one", "even", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tensor_parallel", "roles"))],
)
def loaded(engines: Engines, request: pytest.FixtureRequest) -> Iterator[tilecompile.Engine]:
    with tilecompile.load(engines(request.param), threads=1) as engine:
        yield engine


def greedy(drafts: int | str, count: int) -> SamplingParams:
    return SamplingParams(count, temperature=0, drafts=drafts)


def test_a_draft_step_has_no_indexer(engines: Engines) -> None:
    programs = read_graph(read_manifest(engines("one"))).programs
    ops = {name: [node.op for node in graph.nodes] for name, graph in programs.items()}
    assert ops["draft"].count("cache_append") == 2
    assert "share_selection" in ops["draft"]
    assert not {"index_score", "topk_select"} & set(ops["draft"])
    assert ops["extend"].count("keep_selection") == ops["extend"].count("index_score") == 1
    plain = {node.op for graph in read_graph(read_manifest(engines("plain"))).programs.values() for node in graph.nodes}
    assert not {"keep_selection", "share_selection"} & plain


def test_drafts_never_change_the_text(loaded: tilecompile.Engine) -> None:
    """The context goes across index_topk, and in another request begins beyond it."""
    for prompt in (held_out(1, 60)[0], held_out(1, 300)[0]):
        loaded.reset()
        want = loaded.generate(prompt, greedy(0, 60))
        for depth in (1, 2, 3, "auto"):
            loaded.reset()
            assert loaded.generate(prompt, greedy(depth, 60)).tokens == want.tokens, f"drafts {depth}"


def test_every_placement_drafts_what_one_device_does(engines: Engines, loaded: tilecompile.Engine) -> None:
    """But for rounding: a selection without some of its positions would be accepted less often."""
    (prompt,) = held_out(1, 300)
    loaded.reset()
    got = loaded.generate(prompt, greedy(3, 120)).stats
    with tilecompile.load(engines("one"), threads=1) as one:
        want = one.generate(prompt, greedy(3, 120)).stats
    assert want.accepted_length > 2
    assert got.acceptance == pytest.approx(want.acceptance, abs=0.04)


def test_drafts_are_the_same_while_all_positions_are_selected(engines: Engines) -> None:
    """And are accepted about as often as those that select for themselves in longer contexts."""
    (prompt,) = held_out(1, 300)
    found = []
    for name in ("one", "plain"):
        with tilecompile.load(engines(name), threads=1) as engine:
            assert engine.text is not None
            ids = engine.text.encode(prompt)
            short = engine.generate(ids[:20], greedy(3, TOPK - 20)).stats
            engine.reset()
            long = engine.generate(ids, greedy(3, 150)).stats
            found.append((short.program_steps, short.acceptance, long.acceptance))
    (*same, shared), (*also, own) = found
    assert same == also
    assert shared[0] == pytest.approx(own[0], abs=0.1)
    assert shared[1:] == pytest.approx(own[1:], abs=0.25)


@pytest.mark.parametrize("name", ["one", "even"])
def test_the_interpreter_drafts_as_the_kernel_does(engines: Engines, name: str) -> None:
    """In a random legal order, with fresh counters and memory full of NaN; beyond index_topk on one device."""
    with tilecompile.load(engines(name), threads=1) as engine:
        assert engine.text is not None
        ids = engine.text.encode(held_out(1, 300)[0])[: TOPK + 5 if name == "one" else 12]
        want = engine.generate(ids, greedy(3, 9))
        interpreter = Interpreter(engines(name), 5)
        assert interpreter.generate(ids, 9, drafts=3) == want.tokens
        assert tuple(interpreter.program_steps) == want.stats.program_steps[: len(interpreter.program_steps)]
