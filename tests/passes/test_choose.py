"""Placement auto: what is chosen follows from what a machine's links and memory cost."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import tilecompile
from support.engines import tiny_model
from support.machines import write_machine
from support.small import traced_programs
from tilecompile.cli.app import app
from tilecompile.compile import compile_model
from tilecompile.errors import InputError
from tilecompile.models.registry import NAMED
from tilecompile.models.spec import Storage
from tilecompile.options import CompileOptions
from tilecompile.passes.fuse import fuse
from tilecompile.passes.place.choose import Chosen, choose, coarser, sample
from tilecompile.passes.place.place import SEVERAL
from tilecompile.runtime.folder.manifest import read_manifest
from tilecompile.schedules.auto import REPLICATE, SHARD
from tilecompile.schedules.machine import load_machine

DEVICES = 4


def chosen(tmp_path: Path, remote_event_ns: float, link_gbs: float, gbs: float) -> Chosen:
    """What is chosen for glm5-mini on four devices, each with a memory of its own."""
    path = write_machine(tmp_path / "m.toml", DEVICES, remote_event_ns, link_gbs, gbs, "sm_90a")
    config = NAMED["glm5-mini"]
    layers = sample(config.layers)
    graph = fuse(traced_programs(config.with_layers(layers), Storage(256, "f32", "bf16"))[0])
    return choose(graph, len(layers), SEVERAL, load_machine(str(path)), DEVICES, 1, 256)


def test_what_is_chosen_follows_from_the_costs(tmp_path: Path) -> None:
    dear = chosen(tmp_path, remote_event_ns=1e6, link_gbs=1, gbs=4000)
    free = chosen(tmp_path, remote_event_ns=0, link_gbs=1e6, gbs=4)
    for found in (dear, free):
        assert found.tried[str(found.choice)] == min(found.tried.values())
        assert len(found.recipes) >= 2 * len(SEVERAL)
    # Where a hop takes longer than all reading, nothing is divided that needn't be, and no sum takes two of them.
    assert SHARD not in dear.choice.otherwise.values()
    assert dear.choice.reduction == "one_shot"
    # Where hops are free, no device reads what another one reads.
    assert REPLICATE not in free.choice.otherwise.values()
    assert free.choice.recipe == "even" or free.choice.otherwise["model.self_attn.q_a_proj"] == SHARD
    assert free.choice != dear.choice
    assert str(free.choice) in free.summary


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_sample_has_a_layer_of_each_kind(name: str) -> None:
    config = NAMED[name]
    short = config.with_layers(sample(config.layers))
    assert short.num_hidden_layers < config.num_hidden_layers
    assert short.indexer_types[0] == "full"
    assert ("sparse", "full") in zip(short.mlp_layer_types, short.indexer_types, strict=True)
    assert set(short.mlp_layer_types) == set(config.mlp_layer_types)
    assert set(short.indexer_types) == set(config.indexer_types)


def test_coarser_keeps_bandwidths_with_fewer_workers() -> None:
    machine = load_machine("h200x8")
    coarse, few = coarser(machine, 132)
    assert machine.simulator is not None
    assert coarse.simulator is not None
    assert few < 132
    for (_, single, total), (_, of_few, same) in zip(machine.simulator.read, coarse.simulator.read, strict=True):
        assert of_few * few == pytest.approx(single * 132)
        assert same == total
    assert coarse.simulator.ops["map"].element_ns < machine.simulator.ops["default"].element_ns
    assert coarser(machine, few) == (machine, few)


def test_auto_places_an_engine_by_its_choice(tmp_path: Path) -> None:
    model, path = tiny_model(tmp_path / "model"), write_machine(tmp_path / "m.toml", 2)
    options = CompileOptions(
        str(model),
        tmp_path / "e",
        seed=1,
        machine=str(path),
        placement="auto",
        context=20,
        max_seq_len=64,
        workers=1,
        dump=tmp_path / "dump",
    )
    notes = compile_model(options).notes
    (summary,) = [n for n in notes if n.startswith("placement auto is ")]
    assert read_manifest(tmp_path / "e").data["placement"] == "auto"
    dump = (tmp_path / "dump" / "03-place.txt").read_text()
    assert dump.startswith(summary + "\n  ")
    assert "placement auto: 2 device(s)" in dump
    with tilecompile.load(tmp_path / "e") as engine:
        assert len(engine.generate([1, 2, 3], 4).tokens) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--placement", "auto", "--devices", "2"], "machine cpu states no costs; give --machine with a file that"),
        (["--placement", "auto"], "placement auto is for 2 devices or more, got 1"),
        (["--placement", "auto", "--machine", "M", "--reduction", "one_shot"], "chooses the form of sums by itself"),
        (
            ["--placement", "auto", "--machine", "M", "--context", "900"],
            "--context is 900, the engine holds 64 positions",
        ),
        (["--placement", "auto", "--machine", "M", "--context", "0"], "--context is 0, want 1 to"),
        (["--context", "5"], "--context 5 is what placement auto is chosen for; placement is single"),
    ],
)
def test_options_that_auto_can_not_take_are_refused(arguments: list[str], words: str, tmp_path: Path) -> None:
    machine = str(write_machine(tmp_path / "m.toml", 2))
    given = [machine if a == "M" else a for a in arguments]
    output = ["-o", str(tmp_path / "e"), "--max-seq-len", "64", "--no-weights"]
    result = CliRunner().invoke(app, ["compile", "glm5-mini", *output, *given])
    assert result.exit_code == 2
    assert words in result.stderr.splitlines()[-1]
    assert not (tmp_path / "e").exists()


def test_more_devices_than_any_recipe_takes_are_refused(tmp_path: Path) -> None:
    path = write_machine(tmp_path / "m.toml", 1000)
    tiny_model(tmp_path / "model")
    options = CompileOptions(
        str(tmp_path / "model"),
        tmp_path / "e",
        machine=str(path),
        placement="auto",
        workers=1,
        no_weights=True,
        no_kernel=True,
    )
    with pytest.raises(InputError, match=r"^no placement can use 1000 devices: .*can't be divided over 1000 devices"):
        compile_model(options)
