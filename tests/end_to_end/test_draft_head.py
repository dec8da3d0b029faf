"""A copy of the lm_head for drafts, in a format of its own: only what is drafted changes, never the text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tilecompile
from support.held_out import held_out
from support.paths import TINY_CHECKPOINT
from tilecompile import SamplingParams
from tilecompile.compile import compile_model
from tilecompile.engine.graph_json import read_graph
from tilecompile.errors import InputError
from tilecompile.models.registry import read_config_file
from tilecompile.options import CompileOptions
from tilecompile.runtime.folder.manifest import read_manifest
from tilecompile.runtime.weight_formats import stack_bytes

HEADS = {"decode": "lm_head.weight", "verify": "lm_head.weight", "prefill": "lm_head.weight"}
COPIES = {"extend": "draft_head.weight", "draft": "draft_head.weight"}


def options(output: Path, **changes: Any) -> CompileOptions:
    return CompileOptions(str(TINY_CHECKPOINT), output, **{"workers": 2, "max_seq_len": 512, "drafts": 3, **changes})


def heads(engine: Path) -> dict[str, set[tuple[str, str]]]:
    """The matrices of heads that each step program streams, and their formats."""
    programs = read_graph(read_manifest(engine)).programs
    return {
        name: {(w.tensor, w.dtype) for node in graph.nodes for w in node.weights if "head.weight" in w.tensor}
        for name, graph in programs.items()
    }


def test_texts_are_the_same_and_about_as_many_drafts_are_accepted(tmp_path: Path) -> None:
    compile_model(options(tmp_path / "own"))
    compile_model(options(tmp_path / "copy", draft_head="fp8"))
    found: dict[str, list[Any]] = {}
    lengths = {}
    for name in ("own", "copy"):
        with tilecompile.load(tmp_path / name, threads=2) as engine:
            accepted = []
            for prompt in held_out(6, 90):
                for params in (SamplingParams(90, temperature=0), SamplingParams(90, temperature=0.8, seed=5)):
                    engine.reset()
                    out = engine.generate(prompt, replace(params, drafts=3))
                    found.setdefault(name, []).append(out.tokens)
                    accepted.append(out.stats.accepted_length)
            lengths[name] = sum(accepted) / len(accepted)
    assert found["own"] == found["copy"]
    assert lengths["own"] > 2
    assert lengths["copy"] == pytest.approx(lengths["own"], rel=0.03)
    assert heads(tmp_path / "copy") == {
        **{name: {(head, "bf16")} for name, head in HEADS.items()},
        **{name: {(head, "fp8")} for name, head in COPIES.items()},
    }


@pytest.mark.parametrize("machine", ["h100", pytest.param("h100x8", marks=pytest.mark.slow)])
def test_plans_for_gpus_stream_the_copy_in_steps_of_drafts(tmp_path: Path, machine: str) -> None:
    plain = {"workers": None, "machine": machine, "no_kernel": True, "no_weights": True}
    compile_model(options(tmp_path / "own", **plain))
    proved = compile_model(options(tmp_path / "copy", draft_head="fp8", **plain))  # which proves the plan
    assert proved.proof.instructions > 0
    assert heads(tmp_path / "copy") == {
        **{name: {(head, "bf16")} for name, head in HEADS.items()},
        **{name: {(head, "fp8")} for name, head in COPIES.items()},
    }
    own, copy = (json.loads((tmp_path / name / "engine.json").read_text()) for name in ("own", "copy"))
    assert (own["draft_head"], copy["draft_head"]) == (None, "fp8")
    config = read_config_file(TINY_CHECKPOINT / "config.json")
    least = stack_bytes((config.vocab_size, config.to_dict()["hidden_size"]), "fp8")
    before, after = (sum(pool["bytes"] for pool in made["weights"]["pools"]) for made in (own, copy))
    assert least <= after - before < 3 * least  # with padding of panels and k-blocks, which counts in so small a model
    reads = [{p["name"]: p["bytes_per_step"] for p in made["programs"]} for made in (own, copy)]
    saved = {name: reads[0][name] - reads[1][name] for name in reads[0]}
    assert saved["draft"] == saved["extend"] > 0
    assert saved["decode"] == saved["verify"] == saved["prefill"] == 0


def test_the_models_own_format_makes_no_copy(tmp_path: Path) -> None:
    compile_model(options(tmp_path / "e", draft_head="bf16", no_kernel=True, no_weights=True))
    assert heads(tmp_path / "e") == {name: {("lm_head.weight", "bf16")} for name in (*HEADS, *COPIES)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draft_head": "fp9"}, "--draft-head 'fp9' is unknown; there are: f32, bf16, fp8"),
        ({"draft_head": "f32", "machine": "h100", "workers": None}, "--draft-head is f32, and machine h100 takes bf16"),
        ({"draft_head": "f32", "drafts": 0}, "--draft-head is f32, and --drafts is 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        compile_model(options(tmp_path / "e", **changes))
    assert str(error.value).startswith(message)


def test_a_model_without_a_layer_that_drafts_is_refused(tmp_path: Path) -> None:
    config = json.loads((TINY_CHECKPOINT / "config.json").read_text()) | {"num_nextn_predict_layers": 0}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    made = CompileOptions(str(tmp_path / "model"), tmp_path / "e", draft_head="f32", no_weights=True, no_kernel=True)
    with pytest.raises(InputError, match=r"--draft-head is f32, and .* has no layer that drafts \(MTP\)"):
        compile_model(made)


def test_a_machine_on_which_drafts_do_not_pay_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text(
        'name = "slow"\ntarget = "sm_90a"\ndevices = 1\nworkers = 4\nweight_types = ["bf16", "fp8"]\n'
        "[simulator]\nread = [[1000, 1e9, 1e9]]\ntask_ns = 0\nevent_ns = 0\nremote_event_ns = 0\n"
        "[simulator.ops.default]\nelement_ns = 1\n"
    )
    plain = {"workers": None, "no_kernel": True, "no_weights": True, "drafts": None, "draft_head": "fp8"}
    with pytest.raises(InputError, match=r"--draft-head is fp8, and by estimated time no drafts pay on machine slow"):
        compile_model(options(tmp_path / "e", machine=str(tmp_path / "m.toml"), **plain))
