"""A weight format outside the package: once registered, it is traced, counted, placed, proved, packed and read."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from support.engines import tiny_model
from support.four_bits import INT4, dequantised, quantised, register
from support.reference import run_eager
from tilecompile.cli.app import app
from tilecompile.compile import compile_model
from tilecompile.cost.capacity import needs
from tilecompile.cost.device_reads import node_reads
from tilecompile.cost.graph_reads import reads
from tilecompile.interpret.interpreter import Interpreter
from tilecompile.ir.tiling import WeightTile
from tilecompile.models.drawn import DrawnWeights
from tilecompile.models.registry import read_config_file, spec_of
from tilecompile.models.spec import Steps, Storage
from tilecompile.ops.base import op_of
from tilecompile.options import CompileOptions
from tilecompile.passes.fuse import fuse
from tilecompile.passes.place.place import place
from tilecompile.passes.tile import tile
from tilecompile.passes.trace import trace_program
from tilecompile.runtime.folder.manifest import read_manifest
from tilecompile.runtime.folder.tables import load_tables

MACHINE = """name = "small"
target = "sm_90a"
devices = {devices}
workers = 3
link_gbs = 1
link_latency_ns = 1
weight_types = ["int4", "bf16"]

[simulator]
read = [[1000, 1, 2]]
task_ns = 1
event_ns = 1
remote_event_ns = 1

[simulator.ops.default]
byte_ns = {{ int4 = 50.5 }}
"""


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


def options(tmp_path: Path, devices: int = 1, **changes: Any) -> CompileOptions:
    (tmp_path / "m.toml").write_text(MACHINE.format(devices=devices))
    values = {"machine": str(tmp_path / "m.toml"), "max_seq_len": 64, "weights": "int4", "cache": "f32", "seed": 3}
    return CompileOptions(str(tiny_model(tmp_path / "model")), tmp_path / "e", no_kernel=True, **{**values, **changes})


def stored(shape: tuple[int, ...]) -> int:
    """Bytes of a stack of matrices: half a byte a number, a byte each 32 of a row."""
    *matrices, rows, cols = shape
    return prod(matrices) * rows * (-(-cols // 2) + -(-cols // 32))


def test_traffic_capacity_and_tiles_follow_from_its_row(tmp_path: Path) -> None:
    config = read_config_file(tiny_model(tmp_path / "model") / "config.json")
    decode = spec_of(config).programs(config, Steps())[0]
    graphs = {name: fuse(trace_program(decode, config, Storage(64, "f32", name), Steps())) for name in ("int4", "bf16")}
    nodes = [node for node in graphs["int4"].nodes if node.weights and node.weights[0].dtype == "int4"]
    saved_of_reads = saved_of_memory = 0
    for node in nodes:
        saved = sum(2 * prod(w.shape) - stored(w.shape) for w in node.weights)
        saved_of_memory += saved
        slots = op_of(node).slots
        saved_of_reads += saved if slots is None else saved * slots(node).shape[1] // node.weights[0].shape[0]
        rows, cols = node.weights[0].shape[-2:]
        if slots is None and len(node.weights[0].shape) == 2:
            panels = len(node.weights) * -(-rows // 16)
            size = panels * 8 * -(-cols // 8) * 8 + -(-panels * 16 * -(-cols // 32) // 64) * 64
            constants = 4 * sum(v.shape[0] for v in node.inputs if graphs["int4"].tensors[v.tensor].role == "constant")
            assert node_reads(graphs["int4"], node, 64) == size + constants
    assert len(nodes) > 10
    read = {name: reads(graph, 64).fixed for name, graph in graphs.items()}
    assert read["bf16"] - read["int4"] == saved_of_reads
    placed = {name: place(graph, "single", 1) for name, graph in graphs.items()}
    held = {name: needs([p])[0].weights for name, p in placed.items()}
    assert held["bf16"] - held["int4"] == saved_of_memory
    dtype = {w.tensor: w.dtype for node in graphs["int4"].nodes for w in node.weights}
    for grid in tile(placed["int4"], 3, "fragments").grids:
        for found in {found for task in grid.tiling.weights for found, _ in task if dtype[found.tensors[0]] == "int4"}:
            head = -(-found.panels * 16 * -(-cols_met(found) // 32) // 512) * 512
            assert found.bytes("int4") == head + found.panels * -(-found.cols // 64) * 512


def cols_met(tile: WeightTile) -> int:
    """Columns from the start of the block of 32 in which a tile begins."""
    return tile.col_begin % 32 + tile.cols


@pytest.mark.parametrize(("devices", "placement"), [(1, "single"), (2, "even")])
def test_an_engine_of_it_is_proved_and_computes_with_its_numbers(devices: int, placement: str, tmp_path: Path) -> None:
    compile_model(options(tmp_path, devices, placement=placement))
    manifest = read_manifest(tmp_path / "e")
    assert manifest.data["weights"]["dtype"] == "int4"
    tables = load_tables(manifest)
    assert set(tables["weights"]["dtype"].tolist()) == {1, INT4.code}
    assert (tables["tiles"]["col_begin"] % 32).any() == (devices > 1)
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "e"), "--json"])
    assert result.exit_code == 0, result.output
    ids = [3, 77, 140, 9, 9, 51]
    got = Interpreter(tmp_path / "e").score(ids)
    config = read_config_file(tmp_path / "model" / "config.json")

    class Rounded(DrawnWeights[Any]):
        """The weights with the numbers that the engine has of them."""

        def full(self, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            whole = super().full(name)
            if name not in manifest.data["weights"]["tensors"]:
                return whole.bfloat16().float() if name == "model.embed_tokens.weight" else whole
            code = tables["weights"]["dtype"][manifest.data["weights"]["tensors"].index(name)]
            if code != INT4.code:
                return whole.bfloat16().float()
            return dequantised(*quantised(whole.reshape(-1, whole.shape[-1]))).reshape(whole.shape)

    want = run_eager(config, Rounded(config, 3), torch.tensor(ids, dtype=torch.int32)).numpy()
    exact = run_eager(config, DrawnWeights(config, 3), torch.tensor(ids, dtype=torch.int32)).numpy()
    assert np.abs(got - want).max() < 1e-4
    assert np.abs(got - exact).max() > 1e-2


def test_devices_share_it_and_a_step_of_it_is_simulated(tmp_path: Path) -> None:
    compile_model(options(tmp_path, devices=2, placement="even", seed=None, no_weights=True))
    arguments = ["simulate", str(tmp_path / "e"), "--machine", str(tmp_path / "m.toml"), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    slow = json.loads(result.stdout)["step_ms"]
    text = (tmp_path / "m.toml").read_text()
    (tmp_path / "m.toml").write_text(text.replace("50.5", "0.0"))
    assert json.loads(CliRunner().invoke(app, arguments).stdout)["step_ms"] < slow
