"""Bisecting: the buffers after an operator, from kernel and interpreter, and the first operator that goes wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import tilecompile
from support.chaos import rehashed
from support.engines import Built
from tilecompile.cli.app import app
from tilecompile.errors import EngineError, InputError
from tilecompile.interpret.compare import compare, first_wrong
from tilecompile.interpret.interpreter import Interpreter
from tilecompile.runtime.folder.manifest import read_manifest
from tilecompile.runtime.folder.tables import load_tables
from tilecompile.runtime.replay.buffers import check_kept, find_operator, writes
from tilecompile.targets.cpu.build import ISAS, build

Build = Callable[[str], Built]
OPERATORS = {
    "step.embed": None,
    "model.layers.2.self_attn.q_b_proj": 2,
    "model.layers.2.self_attn.rope": 2,
    "model.layers.2.self_attn.indexer.rope": 2,
    "model.layers.2.mlp.gate_proj+model.layers.2.mlp.up_proj": 2,
    "model.layers.21.self_attn.q_b_proj": 21,
    "lm_head": None,
}


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ("self_attn.q_b_proj@2", 1),
        ("q_b_proj@2", 1),
        ("q_b_proj@21", 5),
        ("self_attn.rope@2", 2),
        ("indexer.rope@2", 3),
        ("mlp.up_proj@2", 4),
        ("gate_proj@2", 4),
        ("mlp.gate_proj+mlp.up_proj@2", 4),
        ("model.layers.2.self_attn.rope", 2),
        ("embed", 0),
        ("lm_head", 6),
    ],
)
def test_find_operator_finds_an_operator_by_short_names(wanted: str, index: int) -> None:
    assert find_operator(OPERATORS, wanted) == list(OPERATORS)[index]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("rope@2", r"ambiguous: model\.layers\.2\.self_attn\.rope, model\.layers\.2\.self_attn\.indexer\.rope"),
        ("q_b_proj", r"ambiguous: model\.layers\.2\.self_attn\.q_b_proj, model\.layers\.21\.self_attn\.q_b_proj"),
        ("b_proj@2", r"unknown: model\.layers\.2\.self_attn\.q_b_proj$"),
        ("nothing@21", r"unknown: model\.layers\.21\.self_attn\.q_b_proj$"),
        ("embed@3", r"layer 3 is unknown, the engine has the layers 2, 21$"),
        ("embed@x", r"the layer is 'x', want OP@LAYER"),
        ("@2", "has no name"),
    ],
)
def test_find_operator_lists_candidates_of_an_ambiguous_name(wanted: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_operator(OPERATORS, wanted)


def test_kernel_and_interpreter_give_the_same_buffers(built: Build) -> None:
    engine = built("shared")
    interpreters = [Interpreter(engine.path), Interpreter(engine.path, 7)]
    with tilecompile.load(engine.path) as kernel:
        for operator, tokens in [
            ("self_attn.q_b_proj@1", 5),
            ("topk_select@2", 42),
            ("gate.route@3", 3),
            ("lm_head", 4),
        ]:
            ids = engine.ids[:tokens]
            got = kernel.buffers_after(ids, operator)
            for interpreter in interpreters:
                want = interpreter.buffers_after(ids, operator)
                assert got.keys() == want.keys()
                assert len(got) == (2 if "route" in operator else 1)
                for name, array in want.items():
                    assert got[name].shape == array.shape
                    assert got[name].dtype == array.dtype
                    assert np.allclose(got[name], array, atol=1e-4, rtol=1e-4)
        assert kernel.buffers_after([1]).keys() == interpreters[0].buffers_after([1]).keys()


def test_the_interpreter_stops_after_the_operator(built: Build) -> None:
    """What comes after the operator has not run; what came before has."""
    engine = built("odd")
    interpreter = Interpreter(engine.path)
    found = interpreter.buffers_after(engine.ids[:3], "self_attn.q_b_proj@1")
    ((name, array),) = found.items()
    assert not np.isnan(array).any()
    buffers = interpreter.buffers()
    assert np.array_equal(buffers[name], array)
    ends = ("q_a_proj", "w_uv", "lm_head")  # of the last step: labels of other programs' buffers begin with their names
    outputs = {n: np.isnan(b).all() for n, b in buffers.items() if n.startswith("decode:") and n.endswith(ends)}
    assert outputs == {n: "q_a_proj" not in n and "layers.0" not in n for n in outputs}
    assert len(outputs) == 5


def test_buffers_that_are_overwritten_later_are_refused(built: Build) -> None:
    """Two operators that share memory: the kernel can't show what the first one wrote, which is an error."""
    manifest = read_manifest(built("odd").path)
    tables = load_tables(manifest)
    written = writes(manifest, tables)
    names = list(written)
    for name in names:
        check_kept(manifest, tables, written, name)
    buffers = tables["buffers"].copy()
    first, second = (int(written[n]["buffer"][0]) for n in names[2:4])
    buffers["offset"][second] = buffers["offset"][first] + buffers["bytes"][first] - 4
    with pytest.raises(EngineError, match=rf"{re.escape(names[3])} writes to the same memory .* ask the interpreter"):
        check_kept(manifest, {**tables, "buffers": buffers}, written, names[2])
    check_kept(manifest, {**tables, "buffers": buffers}, written, names[-2])


def test_compare_names_the_first_wrong_operator(built: Build, tmp_path: Path) -> None:
    engine = built("odd")
    assert first_wrong(compare(engine.path, engine.ids[:20])) is None
    shutil.copytree(engine.path, tmp_path / "engine")
    source = tmp_path / "engine" / "kernel.cpp"
    text, planted = re.subn(r"(static void k\d+_layer_norm\(const Call& c\) \{)", r"\1 return;", source.read_text())
    assert planted
    source.write_text(text)
    isa = ISAS[json.loads((engine.path / "engine.json").read_text())["target"]["isa"]]
    build(source, tmp_path / "engine" / "kernel.so", replace(isa, flags=(*isa.flags, "-O0")))
    differences = compare(rehashed(tmp_path / "engine"), engine.ids[:20])
    first = first_wrong(differences)
    assert first is not None
    assert first.operator == "model.layers.0.self_attn.indexer.k_norm.layer_norm"
    assert sum(d.wrong for d in differences) > 5
    result = CliRunner().invoke(app, ["debug", str(tmp_path / "engine"), "--ids", "1,2,3", "--compare"])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == f"first beyond 0.0001: {first.operator}"


def test_debug_prints_and_compares_buffers(built: Build, tmp_path: Path) -> None:
    engine = str(built("odd").path)

    def run(*options: str) -> str:
        result = CliRunner().invoke(app, ["debug", engine, "--ids", "3,1,4", *options])
        assert result.exit_code == 0, result.stderr
        return result.stdout

    kernel = json.loads(run("--stop-after", "q_b_proj@1", "--json"))["buffers"]
    other = json.loads(run("--stop-after", "q_b_proj@1", "--json", "--interpreter", "--seed", "4"))["buffers"]
    ((name, row),) = kernel.items()
    assert row["shape"] == other[name]["shape"] == [1, 120]
    assert row["rms"] == pytest.approx(other[name]["rms"], rel=1e-4)
    assert row["undefined"] == 0
    text = run("--stop-after", "q_b_proj@1", "--save", str(tmp_path / "out"))
    assert text.startswith(f"{name}  float32[1,120]")
    (saved,) = (tmp_path / "out").glob("*.npy")
    assert np.load(saved).shape == (1, 120)
    assert "step.rope_angles" in json.loads(run("--compare", "--json"))["operators"][0]["operator"]
    for options, message in [
        (["--stop-after", "q_b_proj@9"], "operator 'q_b_proj@9': layer 9 is unknown, the engine has the layers 0–1"),
        (["--seed", "1"], "--seed orders the interpreter's"),
        (["--compare", "--interpreter"], "--compare shows every operator"),
    ]:
        result = CliRunner().invoke(app, ["debug", engine, "--ids", "3,1,4", *options])
        assert result.exit_code == 2
        assert message in result.stderr
