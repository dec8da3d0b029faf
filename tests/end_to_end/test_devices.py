"""Engines on several virtual devices: the numbers of one device, whatever the placement and the timing."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from typer.testing import CliRunner

import tilecompile
from support.chaos import chaotic
from support.engines import MODELS, ODD
from support.machines import write_machine
from support.paths import TINY_CHECKPOINT
from support.reference import draw
from tilecompile.cli.app import app
from tilecompile.compile import compile_model
from tilecompile.errors import InputError
from tilecompile.interpret.interpreter import Interpreter
from tilecompile.options import CompileOptions
from tilecompile.runtime.folder.manifest import read_manifest
from tilecompile.runtime.folder.tables import load_tables
from tilecompile.schedules import PLACEMENTS, REDUCTIONS

TOLERANCE = 5e-4
TOKENS = 128
DRAWN = {
    **{name: overrides for name, (overrides, _) in MODELS.items()},
    "by frequency": {
        **ODD,
        "num_hidden_layers": 7,
        "index_topk_freq": 4,
        "index_skip_topk_offset": 3,
        "index_topk": 24,
    },
}
"""Random configurations; the last one shares indexers as glm-5.2 does."""

MORE = [
    (name, (2, 4, 8)[(i + j) % 3], placement)
    for i, name in enumerate(["tiny", *DRAWN])
    for j, placement in enumerate(PLACEMENTS[1:])
]
"""Every model with every placement; each of both with every number of devices."""


class Model:
    """A model in a folder, a text without near-ties, and the logits of its engine on one device."""

    def __init__(self, folder: Path, source: Path, ids: list[int]) -> None:
        self.folder, self.source, self.ids = folder, source, ids
        self.logits = self.score(self.engine(1, 2))

    def engine(self, devices: int, workers: int, **options: Any) -> Path:
        path = self.folder / f"{devices}x{workers}{'-'.join(map(str, options.values()))}"
        if options.get("placement") == "auto":
            options["machine"] = str(write_machine(self.folder / f"{devices}.toml", devices))
        if not path.exists():
            compile_model(
                CompileOptions(
                    str(self.source), path, devices=devices, workers=workers, max_seq_len=len(self.ids) + 8, **options
                )
            )
        return path

    def score(self, engine: Path, threads: int | None = None) -> npt.NDArray[np.float32]:
        with tilecompile.load(engine, threads=threads) as loaded:
            return loaded.score(self.ids)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    known: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in known:
            folder = tmp_path_factory.mktemp("model")
            if name == "tiny":
                ids = np.random.default_rng(0).integers(1, 1024, TOKENS).tolist()
                known[name] = Model(folder, TINY_CHECKPOINT, ids)
            else:
                config, module, text, _, counted = draw(DRAWN[name], TOKENS)
                module.to(torch.float32).save_pretrained(folder / "model")
                (folder / "model" / "config.json").write_text(json.dumps(config))
                known[name] = Model(folder, folder / "model", text[:counted].tolist())
        return known[name]

    return get


def agree(model: Model, devices: int, workers: int, placement: str, reduction: str | None = None) -> None:
    logits = model.score(model.engine(devices, workers, placement=placement, reduction=reduction))
    assert np.abs(logits - model.logits).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("devices", "workers", "placement", "reduction"),
    [
        (2, 1, "tensor_parallel", None),
        (8, 2, "tensor_parallel", None),
        (2, 1, "roles", None),
        pytest.param(8, 2, "roles", "two_step", marks=pytest.mark.slow),
        (8, 2, "even", "two_step"),
    ],
)
def test_engines_of_several_devices_give_the_models_logits(
    model: Callable[[str], Model], devices: int, workers: int, placement: str, reduction: str | None
) -> None:
    agree(model("odd"), devices, workers, placement, reduction)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "devices", "placement"), MORE)
def test_more_engines_of_several_devices_give_the_models_logits(
    model: Callable[[str], Model], name: str, devices: int, placement: str
) -> None:
    agree(model(name), devices, 1 + devices % 3, placement)


@pytest.mark.slow
@pytest.mark.parametrize("placement", [p for p in PLACEMENTS[1:] if p != "auto"])
@pytest.mark.parametrize("name", ["odd", "by frequency"])
def test_sums_in_two_steps_give_the_bits_of_one_shot(model: Callable[[str], Model], name: str, placement: str) -> None:
    one, two = (
        model(name).score(model(name).engine(8, 3, placement=placement, reduction=reduction))
        for reduction in REDUCTIONS
    )
    assert np.array_equal(one, two)


@pytest.mark.parametrize("placement", ["even", pytest.param("roles", marks=pytest.mark.slow)])
def test_delays_change_no_bits_on_eight_devices(model: Callable[[str], Model], placement: str, tmp_path: Path) -> None:
    engine = model("odd").engine(8, 2, placement=placement, reduction="two_step")
    bits_under_delays(model("odd"), engine, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "devices", "placement"), [one for one in MORE if one[0] in ("tiny", "by frequency", "shared")]
)
def test_delays_change_no_bits_for_more_models(
    model: Callable[[str], Model], name: str, devices: int, placement: str, tmp_path: Path
) -> None:
    bits_under_delays(model(name), model(name).engine(devices, 1 + devices % 3, placement=placement), tmp_path)


def bits_under_delays(model: Model, engine: Path, folder: Path) -> None:
    want = model.score(engine, 1)
    delayed = chaotic(engine, folder / "chaos", seed=3)
    for threads in (1, 2, None):
        assert np.array_equal(model.score(delayed, threads), want)


def test_bits_of_eight_devices_do_not_depend_on_threads(model: Callable[[str], Model]) -> None:
    engine = model("odd").engine(8, 2, placement="tensor_parallel")
    first = model("odd").score(engine, 1)
    for threads in (2, 5, 16):
        assert np.array_equal(model("odd").score(engine, threads), first)


@pytest.mark.parametrize(
    ("devices", "workers", "options"),
    [(2, 1, {"placement": "tensor_parallel"}), (8, 2, {"placement": "even", "reduction": "two_step"})],
)
def test_the_interpreter_agrees_on_several_devices(
    model: Callable[[str], Model], devices: int, workers: int, options: dict[str, str]
) -> None:
    engine = model("odd").engine(devices, workers, **options)
    ids = model("odd").ids[:24]
    logits = Interpreter(engine, 3).score(ids)
    assert np.abs(logits - model("odd").logits[:24]).max() <= TOLERANCE


def test_every_weight_is_divided_over_both_devices(model: Callable[[str], Model]) -> None:
    manifest = read_manifest(model("odd").engine(2, 1, placement="tensor_parallel"))
    tables = load_tables(manifest)
    where = defaultdict(set)
    for tile in tables["tiles"]:
        where[manifest.data["weights"]["tensors"][tile["tensor"]]].add(int(tile["device"]))
        if "o_proj" in manifest.data["weights"]["tensors"][tile["tensor"]]:
            assert tile["cols"] < tables["weights"]["cols"][tile["tensor"]]
    assert all(devices == {0, 1} for devices in where.values())
    assert tables["notifies"]["scope"].all()  # a device's only worker notifies only the other's


def test_inspect_shows_the_placement(model: Callable[[str], Model]) -> None:
    engine = str(model("odd").engine(8, 2, placement="even", reduction="two_step"))
    about = json.loads(CliRunner().invoke(app, ["inspect", engine, "--json"]).stdout)
    table = about["placement_tables"]["decode"]
    rows = {row["operator"]: row for row in table["operators"]}
    assert rows["self_attn.o_proj"]["axis"] == "cols, two_step"
    assert rows["self_attn.indexer.index_score"]["axis"] == "context, blocks of 4"
    assert len(table["read"]) == about["devices"] == 8
    decode = next(p for p in about["programs"] if p["name"] == "decode")
    assert sum(table["read"]) > decode["bytes_per_step"]  # norms are read by all, and panels are padded
    shown = CliRunner().invoke(app, ["inspect", engine]).stdout
    assert f"{table['exchanges']} exchanges, {table['chain']} of them one after the other" in " ".join(shown.split())


@pytest.mark.parametrize(("placement", "devices"), [("tensor_parallel", 1), ("even", 1), ("single", 2)])
def test_a_placement_for_another_number_of_devices_is_refused(tmp_path: Path, placement: str, devices: int) -> None:
    with pytest.raises(InputError, match=f"placement {placement} .*device"):
        compile_model(CompileOptions(str(TINY_CHECKPOINT), tmp_path / "engine", devices=devices, placement=placement))
    assert not (tmp_path / "engine").exists()
