"""The interpreter is an oracle: an engine's tables with the ops' references give the kernel's results, in any order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import tilecompile
from support.chaos import rehashed
from support.engines import MODELS, Built
from tilecompile.engine.graph_json import read_graph
from tilecompile.errors import EngineError, EngineStalled, InputError
from tilecompile.interpret.interpreter import Interpreter, Order
from tilecompile.runtime.folder.manifest import read_manifest
from tilecompile.runtime.format import FORMAT_VERSION
from tilecompile.targets.tiles import pack_rows, unpack_rows

Build = Callable[[str], Built]
LIMIT = 1e-5
"""Largest error over the RMS of the logits."""


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Max error over RMS; infinite where a value is NaN."""
    assert got.shape == want.shape
    off = np.abs(got.astype(np.float64) - want)
    return float(np.where(np.isnan(off), np.inf, off).max() / np.sqrt(np.mean(want.astype(np.float64) ** 2)))


def kernel_score(engine: Built, tokens: int) -> np.ndarray:
    with tilecompile.load(engine.path) as kernel:
        return kernel.score(engine.ids[:tokens])


@pytest.mark.parametrize(("name", "tokens"), [("plain", 40), ("odd", 30), ("shared", 44)])
def test_any_order_gives_the_kernels_logits(name: str, tokens: int, built: Build) -> None:
    engine = built(name)
    want = kernel_score(engine, tokens)
    in_order = Interpreter(engine.path).score(engine.ids[:tokens])
    assert error(in_order, want) <= LIMIT
    for seed in range(2):
        at_random = Interpreter(engine.path, seed).score(engine.ids[:tokens])
        assert np.array_equal(at_random, in_order), "an order changed the interpreter's bits"


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_many_random_orders_give_the_kernels_logits(name: str, built: Build) -> None:
    engine = built(name)
    want = kernel_score(engine, len(engine.ids))
    in_order = Interpreter(engine.path).score(engine.ids)
    assert error(in_order, want) <= LIMIT
    interpreter = Interpreter(engine.path, 100)
    for _ in range(50):
        assert np.array_equal(interpreter.score(engine.ids), in_order)


@pytest.mark.parametrize("order", ["program", 5])
def test_the_interpreter_generates_the_kernels_tokens(order: Order, built: Build) -> None:
    engine = built("odd")
    with tilecompile.load(engine.path) as kernel:
        want = kernel.generate(engine.ids[:5], max_new_tokens=12).tokens
    assert Interpreter(engine.path, order).generate(engine.ids[:5], 12) == want


def test_random_orders_differ_from_program_order(built: Build) -> None:
    """Otherwise the runs would show nothing: the order in which operators finish depends on the seed."""
    runs = []
    for order in ("program", 1, 2):
        interpreter = Interpreter(built("plain").path, order)
        trace: list[int] = []
        run = interpreter._evaluator.run
        interpreter._evaluator.run = lambda i, *step, t=trace, r=run: (t.append(i), r(i, *step))[1]
        interpreter.score([1])
        runs.append(trace)
    assert len({tuple(r) for r in runs}) == 3
    assert len({frozenset(r) for r in runs}) == 1


def test_a_missing_edge_changes_results_or_stalls(built: Build, tmp_path: Path) -> None:
    """Without its waits a program reads what isn't written yet in some order; with one too many it stalls."""
    engine = built("odd")
    shutil.copytree(engine.path, tmp_path / "early")
    instructions = np.load(tmp_path / "early" / "tables" / "instructions.npy")
    instructions["wait_count"][instructions["kind"] != 0] = 0
    np.save(tmp_path / "early" / "tables" / "instructions.npy", instructions)
    want = kernel_score(engine, 3)
    wrong = 0
    for seed in range(4):
        try:
            wrong += error(Interpreter(rehashed(tmp_path / "early"), seed).score(engine.ids[:3]), want) > LIMIT
        except EngineError:
            wrong += 1
    assert wrong >= 3
    shutil.copytree(engine.path, tmp_path / "late")
    waits = np.load(tmp_path / "late" / "tables" / "waits.npy")
    waits["count"][5] += 1
    np.save(tmp_path / "late" / "tables" / "waits.npy", waits)
    with pytest.raises(EngineStalled, match=r"worker \d+ waits before task .* for event \d+, have \d+, want \d+"):
        Interpreter(rehashed(tmp_path / "late")).score(engine.ids[:3])


def test_a_missing_weight_run_gives_nan(built: Build, tmp_path: Path) -> None:
    """Weights come from the task's own runs: without its run, a task gives NaN."""
    engine = built("odd")
    shutil.copytree(engine.path, tmp_path / "engine")
    instructions = np.load(tmp_path / "engine" / "tables" / "instructions.npy")
    operators = read_manifest(engine.path).data["operators"]
    projection = next(i for i, ins in enumerate(instructions) if operators[ins["op"]].endswith("o_proj"))
    instructions["tape_count"][projection] = 0
    np.save(tmp_path / "engine" / "tables" / "instructions.npy", instructions)
    assert np.isnan(Interpreter(rehashed(tmp_path / "engine")).score(engine.ids[:2])).any()


def test_graph_json_names_the_operators_that_tables_number(built: Build, tmp_path: Path) -> None:
    engine = built("shared").path
    manifest = read_manifest(engine)
    graph = read_graph(manifest)
    assert [n.name for n in graph.nodes] == manifest.data["operators"]
    assert any(isinstance(n.attrs.get("epilogue"), tuple) for n in graph.nodes)
    assert {n.layer for n in graph.nodes} == {None, 0, 1, 2, 3}
    assert "graph.json" in manifest.data["files"]
    shutil.copytree(engine, tmp_path / "old")
    data = json.loads((tmp_path / "old" / "graph.json").read_text())
    (tmp_path / "old" / "graph.json").write_text(json.dumps({**data, "format": 99}))
    with pytest.raises(EngineError, match=rf"graph\.json: format version is 99, want {FORMAT_VERSION}"):
        Interpreter(rehashed(tmp_path / "old"))
    del data["programs"][0]["operators"][3]["inputs"]
    (tmp_path / "old" / "graph.json").write_text(json.dumps(data))
    with pytest.raises(EngineError, match=r"graph\.json: is not a readable graph: KeyError 'inputs'"):
        Interpreter(rehashed(tmp_path / "old"))
    (tmp_path / "old" / "graph.json").unlink()
    with pytest.raises(EngineError, match=r"graph\.json: missing file; compile the model again"):
        Interpreter(rehashed(tmp_path / "old"))


def test_ids_outside_the_vocabulary_or_the_context_are_refused(built: Build) -> None:
    interpreter = Interpreter(built("odd").path)
    with pytest.raises(InputError, match="outside the vocabulary"):
        interpreter.score([100000])
    with pytest.raises(InputError, match="max_seq_len is 128"):
        interpreter.score([1] * 129)


@pytest.mark.parametrize(("matrices", "rows", "cols"), [(1, 16, 3), (1, 37, 5), (2, 48, 7), (2, 5, 1)])
def test_unpacking_inverts_packing(matrices: int, rows: int, cols: int) -> None:
    whole = [torch.randn(rows, cols) for _ in range(matrices)]
    panels = pack_rows(whole)
    for got, want in zip(unpack_rows(panels.flatten(), matrices, rows, cols), whole, strict=True):
        assert torch.equal(got, want)
