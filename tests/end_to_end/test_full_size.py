"""Plans for machines of many workers: stored short, proved whole, refused with numbers where they can't fit."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import tilecompile
from support.full_size_mutations import KINDS, Plan, mutations
from support.small import GLM5, traced_programs
from tilecompile.cli.app import app
from tilecompile.compile import compile_model
from tilecompile.cost.capacity import Needs, check_fit, needs
from tilecompile.cost.graph_reads import reads
from tilecompile.engine.graph_json import read_graph
from tilecompile.engine.placement_json import read_placement
from tilecompile.errors import EngineError, InputError
from tilecompile.ir.placement import PlacedGraph
from tilecompile.ir.tiling import WeightTile
from tilecompile.models.registry import NAMED
from tilecompile.models.spec import Storage
from tilecompile.ops.base import REGISTRY
from tilecompile.options import CompileOptions
from tilecompile.passes.fuse import fuse
from tilecompile.passes.place.place import place
from tilecompile.passes.repetition import shortened
from tilecompile.runtime.folder.manifest import read_manifest
from tilecompile.runtime.folder.tables import load_tables
from tilecompile.runtime.format import LINES
from tilecompile.runtime.weight_formats import BF16, FP8
from tilecompile.schedules.machine import load_machine

LAYERS = 12
GB = 10**9
CONTEXT = 131072


def machine(path: Path, memory: int = GB, devices: int = 2, ring: int = 0) -> str:
    """A machine without kernels."""
    path.write_text(
        f"""name = "small"
target = "sm_90a"
devices = {devices}
workers = 3
memory_bytes = {memory}
shared_memory_bytes = 65536
link_gbs = 1
link_latency_ns = 1
weight_types = ["bf16", "fp8"]

[simulator]
read = [[1000, 1, 2]]
task_ns = 1
event_ns = 1
remote_event_ns = 1
ring_bytes = {ring}
"""
    )
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps({**GLM5, "num_hidden_layers": LAYERS}))
    return str(folder)


def options(model: str, tmp_path: Path, **changes: Any) -> CompileOptions:
    values = {"machine": machine(tmp_path / "m.toml"), "max_seq_len": 32, "weights": "fp8", "no_weights": True}
    values["no_kernel"] = True
    return CompileOptions(model, tmp_path / "e", **{**values, **changes})


@pytest.fixture
def without_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ops without a body for GPUs."""
    for op in ("rope", "mla_attention"):
        monkeypatch.setitem(REGISTRY, op, dataclasses.replace(REGISTRY[op], gpu=None))


@pytest.mark.usefixtures("without_bodies")
@pytest.mark.parametrize("weights", [{"no_weights": True}, {"no_weights": False, "seed": 1}])
def test_ops_without_bodies_are_named_in_the_refusal(model: str, tmp_path: Path, weights: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^the target sm_90a has no bodies yet for .*mla_attention.*, rope.*--no-ker"):
        compile_model(options(model, tmp_path, no_kernel=False, **weights))
    assert not (tmp_path / "e").exists()


@pytest.mark.usefixtures("without_bodies")
def test_an_engine_without_kernel_has_complete_tables(model: str, tmp_path: Path) -> None:
    compiled = compile_model(options(model, tmp_path))
    manifest = read_manifest(compiled.output)
    assert (manifest.data["target"]["name"], manifest.data["cache"]) == ("sm_90a", "bf16")
    tables = load_tables(manifest)
    stored = np.load(manifest.table("instructions"))
    assert len(stored) < len(tables["instructions"]) == compiled.proof.instructions
    assert sum(p["tasks"] for p in manifest.data["programs"]) == compiled.proof.instructions
    graph = read_graph(manifest)
    assert [n.name for n in graph.nodes] == manifest.data["operators"]
    assert {n.layer for n in graph.nodes} == {None, *range(LAYERS + 1)}
    assert f"model.layers.{LAYERS - 1}.self_attn.o_proj" in read_placement(manifest, "decode")
    with pytest.raises(
        EngineError, match=r"^\S+engine.json: the engine has no kernel \(kernel.so\) for its target sm_90a"
    ):
        tilecompile.load(compiled.output)
    result = CliRunner().invoke(app, ["verify", str(compiled.output), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["tasks"] == compiled.proof.instructions
    result = CliRunner().invoke(
        app, ["simulate", str(compiled.output), "--machine", str(tmp_path / "m.toml"), "--json"]
    )
    assert result.exit_code == 0, result.output


def test_tables_with_wrong_repeats_are_refused(model: str, tmp_path: Path) -> None:
    folder = compile_model(options(model, tmp_path)).output
    manifest = read_manifest(folder)
    good = np.load(manifest.table("repeats"))
    for field, value, words in (
        ("line", 99, "line 99"),
        ("end", 1 << 30, "want parts of"),
        ("times", 3, "in the others"),
    ):
        wrong = good.copy()
        wrong[field][0] = value
        np.save(manifest.table("repeats"), wrong)
        with pytest.raises(EngineError, match=words):
            load_tables(manifest)
    wrong = good.copy()
    wrong["times"] = 1 << 31
    np.save(manifest.table("repeats"), wrong)
    with pytest.raises(EngineError, match="stands for"):
        load_tables(manifest)
    np.save(manifest.table("repeats"), good[good["line"] != LINES.index("instructions")])
    with pytest.raises(EngineError, match="has 0 entries of instructions"):
        load_tables(manifest)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": "f32"}, "weights are f32, and machine small takes bf16, fp8"),
        ({"max_seq_len": 65}, "--max-seq-len is 65, the model's positions end at 64"),
        ({"target": "cpu"}, "--target cpu contradicts --machine small, whose target is sm_90a"),
        ({"placement": "tensor_parallel", "devices": 3}, "--devices 3 contradicts --machine small"),
    ],
)
def test_options_that_contradict_the_machine_are_refused(
    model: str, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        compile_model(options(model, tmp_path, **changes))
    assert not (tmp_path / "e").exists()


def test_plans_that_exceed_a_memory_are_refused_before_planning(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes before anything is planned, and lists what takes how much memory."""
    monkeypatch.setattr("tilecompile.compile.tile", lambda *args: pytest.fail("it is planned"))
    path = machine(tmp_path / "small.toml", memory=100_000)
    with pytest.raises(InputError, match=r"^device \d needs \d+ bytes for weights \d+ bytes, caches \d+ bytes of 32"):
        compile_model(options(model, tmp_path, machine=path))
    path = machine(tmp_path / "small.toml", ring=65537)
    with pytest.raises(InputError, match=r"the loader's ring takes 65537 bytes .* machine small has 65536 bytes of"):
        compile_model(options(model, tmp_path, machine=path))


def test_more_devices_than_the_model_divides_into_are_refused(model: str, tmp_path: Path) -> None:
    path = machine(tmp_path / "many.toml", devices=200)
    with pytest.raises(InputError, match=r"can't be divided over 200 devices"):
        compile_model(options(model, tmp_path, machine=path))


def glm5(weights: str, placement: str = "tensor_parallel") -> tuple[list[PlacedGraph], Any, int]:
    """GLM-5 on eight devices at 128 Ki positions as a short plan with repeats; bytes that a step reads."""
    found = shortened(NAMED["glm-5"].layers)
    assert found is not None
    layers, repeat = found
    storage = Storage(CONTEXT, "bf16", weights)
    graphs = [fuse(g) for g in traced_programs(NAMED["glm-5"].with_layers(layers), storage)]
    return [place(g, placement, 8) for g in graphs], repeat.copies, reads(graphs[0], CONTEXT, repeat.copies).fixed


def test_bytes_of_glm5_in_fp8_are_the_published_ones() -> None:
    """The published model's bytes a token and in memory."""
    placed, copies, fixed = glm5("fp8")
    assert fixed == pytest.approx(41.93 * GB, rel=2e-4)
    found = needs(placed, copies)
    assert len({n.weights for n in found}) == 1
    # Sharded once they are 94.5 GB; the embedding table and the small projections are on every device.
    assert 94.5 * GB < found[0].weights < 99 * GB
    assert found[0].caches == pytest.approx(14.6 * GB, rel=0.01)
    for name in ("h200x8", "b200x8"):
        check_fit(found, load_machine(name), CONTEXT)
    with pytest.raises(InputError, match=r"needs \d+\.\d GB for weights 98\.\d GB, .* machine h100x8 has 80\.0 GB"):
        check_fit(found, load_machine("h100x8"), CONTEXT)
    placed, copies, _ = glm5("bf16")
    with pytest.raises(InputError, match=r"h200x8 has 141\.0 GB a device"):
        check_fit(needs(placed, copies), load_machine("h200x8"), CONTEXT)


def test_matrix_and_tile_bytes_in_fp8_include_scales() -> None:
    assert FP8.matrix_bytes(256, 384) == 256 * 384 + 2 * 3 * 4
    assert FP8.matrix_bytes(257, 385) == 257 * 385 + 3 * 4 * 4
    assert BF16.matrix_bytes(7, 9) == 7 * 9 * 2
    assert FP8.tile_bytes(1, 384, 0, "rows") == 64 + 16 * 384
    tile = WeightTile(("w", "v"), 0, 1, 0, 40, 130)
    assert tile.bytes("fp8") == 64 + 2 * 3 * 16 * 132
    assert Needs(1, 2, 3).total == 6


@pytest.mark.slow
def test_glm5_compiles_in_bounded_time_and_memory_and_mutations_are_refused(tmp_path: Path) -> None:
    """GLM-5 on 8 x 132 workers: time and memory of the whole compilation, its size, and a sample of mutations."""
    command = [sys.executable, "-c", MEASURED, "compile", "glm-5", "--machine", "h200x8", "--placement", "even"]
    command += [
        "--weights",
        "fp8",
        "--no-weights",
        "--no-kernel",
        "--max-seq-len",
        str(CONTEXT),
        "-o",
        str(tmp_path / "e"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak = map(float, result.stdout.split())
    print(result.stderr, f"{seconds:.0f} s of processors, {peak / 1e6:.2f} GB")
    assert seconds <= 90
    assert peak <= 8e6
    assert re.search(r"a step runs \d+ tasks with \d+ events and \d+ edges, proved in [\d.]+ s", result.stderr)
    assert sum(f.stat().st_size for f in (tmp_path / "e").rglob("*") if f.is_file()) <= 400e6
    plan = Plan(tmp_path / "e")
    assert plan.prove(plan.tables).instructions > 700_000
    begin = time.process_time()
    found = mutations(plan, 2 * len(KINDS), seed=1)
    each = (time.process_time() - begin) / len(found)
    print(f"{each:.2f} s a mutation")
    assert not [(name, where) for name, where, said in found if said is None]
    assert each * 500 <= 15 * 60


MEASURED = """
import resource, sys
from tilecompile.cli.app import main
code = 0
try:
    main()
except SystemExit as error:
    code = error.code
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(code)
"""
"""The command line, which prints what it took: CPU seconds, and kB of memory at most."""
