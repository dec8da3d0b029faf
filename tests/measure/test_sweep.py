"""tilecompile simulate of models: compiled for the purpose, drafts, sweeps of plans and their picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.commands import refused, run
from support.machines import write_machine
from support.small import GLM5
from tilecompile.errors import InputError
from tilecompile.measure.simulated.plans import plan_of
from tilecompile.measure.simulated.sweep import CONTEXTS
from tilecompile.schedules.machine import load_machine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a small GLM-5 with an MTP layer, without weights."""
    folder = tmp_path_factory.mktemp("model")
    about = {**GLM5, "architectures": ["GlmMoeDsaForCausalLM"], "model_type": "glm_moe_dsa"}
    (folder / "config.json").write_text(json.dumps(about))
    return folder


def machine(folder: Path, devices: int = 2, ring: int = 65536) -> str:
    """Four workers a device, with loaders."""
    path = write_machine(folder / "m.toml", devices, target="sm_90a")
    text = path.read_text().replace("[simulator]", "workers = 4\n\n[simulator]", 1)
    path.write_text(text + f"ring_bytes = {ring}\n")
    return str(path)


def found(*args: str) -> dict[str, Any]:
    done = run("simulate", *args, "--json")
    assert done.exit_code == 0, done.output
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_simulating_a_model_gives_what_its_engine_gives(model: Path, tmp_path: Path) -> None:
    """A model gives what its engine gives."""
    m = machine(tmp_path)
    compiled = run("compile", str(model), "--machine", m, "--no-weights", "--no-kernel", "-o", str(tmp_path / "e"))
    assert compiled.exit_code == 0, compiled.output
    of_engine = found(str(tmp_path / "e"), "--machine", m, "--context", "64")
    of_model = found(str(model), "--machine", m, "--context", "64")
    assert of_model["tasks"] == of_engine["tasks"]
    assert of_model["step_ms"] == pytest.approx(of_engine["step_ms"], rel=1e-3)  # caches of another length
    other = found(str(model), "--machine", m, "--context", "64", "--placement", "even")
    assert other["tasks"] != of_model["tasks"]


def test_rounds_of_speculation_are_made_of_the_plans_steps(tiny: Path, tmp_path: Path) -> None:
    args = (str(tiny), "--machine", machine(tmp_path), "--context", "64")
    never, half, always = (found(*args, "--acceptance", x) for x in ("0", "0.5", "1"))
    lengths = [[row["tokens_a_round"] for row in one["speculation"]["depths"]] for one in (never, half, always)]
    assert lengths == [[1, 1, 1, 1], [1, 1.5, 1.75, 1.875], [1, 2, 3, 4]]
    made = half["speculation"]
    assert (made["acceptance"], made["depths"][0]["token_ms"]) == (0.5, half["step_ms"])
    for d, row in enumerate(made["depths"]):
        if d:
            steps = row["verify_ms"] + row["extend_ms"] + (d - 1) * made["draft_ms"]
            assert row["round_ms"] == pytest.approx(steps)
            assert row["verify_ms"] > half["step_ms"] > row["extend_ms"] >= made["draft_ms"] > 0
        assert row["token_ms"] == row["round_ms"] / row["tokens_a_round"]
        assert row["gain"] == pytest.approx(half["step_ms"] / row["token_ms"])
        assert row["token_ms"] >= made["depths"][made["best"]]["token_ms"]
    verify = [row["verify_ms"] for row in made["depths"]]
    assert verify == sorted(verify)  # more tokens fill more expert slots
    assert verify[1] < verify[3]
    assert never["speculation"]["best"] == 0
    assert always["speculation"]["best"] > 0


def test_published_acceptance_is_the_default(tiny: Path, model: Path, tmp_path: Path) -> None:
    m = ("--machine", machine(tmp_path), "--context", "64")
    args = (str(tiny), *m)
    made = found(*args)["speculation"]
    assert [row["tokens_a_round"] for row in made["depths"]] == [1, 1.84, 2.50, 2.99]
    assert made["acceptance"] is None
    text = run("simulate", *args).stdout
    assert "accepted as published for GLM-5.2" in " ".join(text.split())
    without = ("simulate", str(model), *m, "--drafts", "0")
    assert found(*without[1:])["speculation"] is None
    assert "drafts no tokens" in run(*without, "--acceptance", "0.9").stderr


def test_steps_have_no_more_tokens_than_their_program(tiny: Path) -> None:
    plan, on = plan_of(tiny), load_machine("h200")
    with pytest.raises(InputError, match=r"tokens is 5, want 1 to 4 \(those that the step program carries\)"):
        plan.step(on, 64, program="verify", tokens=5)
    assert plan.step(on, 64, program="verify").ms == plan.step(on, 64, program="verify", tokens=4).ms


@pytest.mark.slow
def test_a_sweep_covers_placements_contexts_and_rings(model: Path, tmp_path: Path) -> None:
    m = machine(tmp_path)
    picture = tmp_path / "sweep.svg"
    args = (str(model), "--machine", m, "--sweep", "--context", "32,60")
    rows = found(*args, "-o", str(picture))["steps"]
    made = {(r["placement"], r["context"], r["granularity"], r["ring_bytes"]): r for r in rows}
    assert len(made) == len(rows)
    for placement in ("tensor_parallel", "roles", "even", "auto"):
        mine = {key[1:] for key in made if key[0] == placement}
        assert mine == {(32, 1, 65536), (32, 1, 32768), (32, 1, 16384), (60, 1, 65536), (32, 2, 65536)}
    auto = made["auto", 60, 1, 65536]["step_ms"]
    assert auto <= 1.01 * min(made[p, 60, 1, 65536]["step_ms"] for p in ("tensor_parallel", "roles", "even"))
    assert "<svg" in picture.read_text()


def test_sweep_of_a_placement(model: Path, tmp_path: Path) -> None:
    args = (str(model), "--machine", machine(tmp_path), "--sweep", "--context", "32", "--placement", "even")
    text = run("simulate", *args, "-o", str(tmp_path / "sweep.png")).stdout
    assert text.count("even") == 4  # three depths of the ring, and finer tasks
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_arguments_that_do_not_apply_are_refused(model: Path, tiny: Path, tmp_path: Path) -> None:
    m = ("--machine", machine(tmp_path))
    assert "--sweep is for a model" in refused("simulate", str(tiny), *m, "--sweep")
    assert "--placement is for a model" in refused("simulate", str(tiny), *m, "--placement", "even")
    assert "--context is '1,2', want one number" in refused("simulate", str(model), *m, "--context", "1,2")
    assert "--context is 'x', want a number" in refused("simulate", str(model), *m, "--context", "x")
    assert "--context is 0, want 1 or more" in refused("simulate", str(model), *m, "--context", "0")
    assert "--acceptance is 2.0, want 0 to 1" in refused("simulate", str(model), *m, "--acceptance", "2")
    assert "is neither a checkpoint folder nor a named configuration" in refused("simulate", "moon", *m)
    assert "the picture of a sweep is one of .png, .svg, .pdf" in refused(
        *("simulate", str(model), *m, "--sweep", "-o", str(tmp_path / "a.txt"))
    )
    assert "--context is 131072, the model's positions end at 64" in refused(
        *("simulate", str(model), *m, "--context", str(CONTEXTS[-1]))
    )
    assert "on machine" in refused("simulate", str(model), "--machine", "h200", "--threads", "2")
    drafts = refused("compile", str(model), "--seed", "1", "--drafts", "8", "-o", str(tmp_path / "x"))
    assert "--drafts is 8, want 0 to 7" in drafts
