"""graph.json comes back as it was written, and what no compiler writes is refused in one line."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest

from support.engines import tiny_model
from tilecompile.compile import compile_model
from tilecompile.engine.graph_json import read_graph
from tilecompile.errors import EngineError
from tilecompile.options import CompileOptions
from tilecompile.runtime.folder.manifest import Manifest, read_manifest
from tilecompile.runtime.folder.operators import read_operators
from tilecompile.runtime.folder.tables import load_tables
from tilecompile.runtime.names import PUSH, ROLES
from tilecompile.runtime.replay.choices import choices


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A plan on two devices, with exchanges, shards of the context and parts."""
    folder = tmp_path_factory.mktemp("graph")
    options = {"devices": 2, "workers": 2, "max_seq_len": 64, "no_kernel": True, "no_weights": True}
    compile_model(CompileOptions(str(tiny_model(folder / "model")), folder / "engine", placement="even", **options))
    return read_manifest(folder / "engine")


def test_structure_comes_back(engine: Manifest) -> None:
    graph = read_graph(engine).programs["decode"]
    assert {node.device for node in graph.nodes} == {0, 1}
    assert {node.role for node in graph.nodes} <= set(ROLES)
    assert all((node.peer is None) != (node.role == PUSH) for node in graph.nodes)
    assert all(tensor.undivided for tensor in graph.tensors.values())
    assert {tensor.shard[1] for tensor in graph.tensors.values() if tensor.shard} == {2}
    assert {node.layer for node in graph.nodes} > {0, None}
    for node, stated in zip(read_graph(engine).nodes, read_operators(engine), strict=True):
        fields = ("name", "op", "device", "origin", "role", "peer")
        assert [getattr(node, field) for field in fields] == [getattr(stated, field) for field in fields]


DAMAGED: list[tuple[str, Any, str]] = [
    ("operators/0/role", "nonsense", "the role of operator .* is 'nonsense'"),
    ("operators/0/device", -3, "names device -3, want 0 to 1"),
    ("operators/0/peer", 99, "names device 99, want 0 to 1"),
    ("operators/0/layer", float("inf"), "not a readable graph"),
    ("operators/0/attrs", [], "not a readable graph"),
    ("operators/0/op", "nothing", "unknown op nothing"),
    ("operators/0/inputs/0/0", "nothing", "names tensor nothing, which isn't among the tensors"),
    ("operators", "text", "not a readable graph"),
    ("operators", [["list"]], "not a readable graph"),
    ("tensors/0/dtype", "zz", "is zz .*, want a type and a role that exist"),
    ("tensors/0/role", "qq", "want a type and a role that exist"),
    ("tensors/0/device", 2, "is on device 2, want 0 to 1"),
    ("tensors/0/shard", "abc", "the shard of tensor"),
]


@pytest.mark.parametrize(("path", "value", "words"), DAMAGED)
def test_what_no_compiler_writes_is_refused(engine: Manifest, path: str, value: Any, words: str) -> None:
    original = engine.file("graph.json").read_text()
    data = json.loads(original)
    place, (*way, last) = data["programs"][0], path.split("/")
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    place[int(last) if last.isdigit() else last] = value
    engine.file("graph.json").write_text(json.dumps(data))
    try:
        with pytest.raises(EngineError, match=words):
            read_graph(engine)
        for read in (read_operators, lambda manifest: choices(manifest, load_tables(manifest))):
            with suppress(EngineError):  # they may not need what is damaged
                read(engine)
    finally:
        engine.file("graph.json").write_text(original)


def test_an_unknown_choice_is_refused(engine: Manifest) -> None:
    original = engine.file("graph.json").read_text()
    assert '"chooses":"positions"' in original
    engine.file("graph.json").write_text(original.replace('"chooses":"positions"', '"chooses":"placements"', 1))
    try:
        with pytest.raises(EngineError, match="chooses 'placements', want positions or experts"):
            choices(engine, load_tables(engine))
    finally:
        engine.file("graph.json").write_text(original)
