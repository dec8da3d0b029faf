"""SamplingParams: what is refused, in one line, and what the engine's defaults and stop ids make of the rest."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilecompile
from tests.support import fake_engine as fake
from tilecompile import InputError, SamplingParams
from tilecompile.models.generation import Generation, read_generation
from tilecompile.runtime import format as fmt
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.sampling import params_of

REFUSED: list[tuple[str, Any, str]] = [
    ("max_new_tokens", 0, "a whole number from 1, or None"),
    ("max_new_tokens", True, "a whole number from 1, or None"),
    ("max_new_tokens", 1.5, "a whole number from 1, or None"),
    ("temperature", -0.1, "a number from 0 to 100 or None"),
    ("temperature", 1e-9, "0 or at least 0.001"),
    ("temperature", math.nan, "a number from 0 to 100 or None"),
    ("temperature", math.inf, "a number from 0 to 100 or None"),
    ("temperature", "0.7", "a number from 0 to 100 or None"),
    ("temperature", False, "a number from 0 to 100 or None"),
    ("top_k", -1, "a whole number from 0"),
    ("top_k", 2.0, "a whole number from 0"),
    ("top_k", True, "a whole number from 0"),
    ("top_p", 0, "a number above 0, up to 1 or None"),
    ("top_p", 2, "a number above 0, up to 1 or None"),
    ("min_p", -0.5, "a number from 0 to 1 or None"),
    ("repetition_penalty", 0, "a number above 0"),
    ("presence_penalty", None, "a number from -100 to 100"),
    ("frequency_penalty", math.nan, "a number from -100 to 100"),
    ("seed", -1, "a whole number from 0"),
    ("seed", 1 << 64, "a whole number from 0"),
    ("logprobs", 50, "a whole number from 0 to 20 or None"),
    ("logprobs", True, "a whole number from 0 to 20 or None"),
    ("min_tokens", -1, "a whole number from 0"),
    ("ignore_eos", 1, "True or False"),
    ("include_stop", 0, "True or False"),
    ("drafts", 8, "0 to 7, 'auto' or None"),
    ("drafts", "many", "0 to 7, 'auto' or None"),
    ("allowed_tokens", [1], "a function of the tokens so far, or None"),
    ("logit_bias", [1], "numbers by token id"),
    ("stop_token_ids", 5, "a list of token ids"),
    ("stop_token_ids", [1.5], "token ids"),
    ("stop_token_ids", [-1], "token ids"),
    ("stop_token_ids", range(65), "at most 64"),
    ("stop", 5, "a list of texts"),
    ("stop", [""], "texts of 1 to 1024 characters"),
    ("stop", [b"a"], "texts of 1 to 1024 characters"),
    ("stop", ["a"] * 65, "at most 64"),
]


@pytest.mark.parametrize(
    ("name", "value", "want"), REFUSED, ids=[f"{name}={value!r:.20}" for name, value, _ in REFUSED]
)
def test_a_wrong_value_is_refused_by_name_in_one_line(name: str, value: Any, want: str) -> None:
    with pytest.raises(InputError) as error:
        SamplingParams(**{name: value})
    text = str(error.value)
    assert text.startswith(name)
    assert f"want {want}" in text
    assert "\n" not in text


@pytest.mark.parametrize("biases", [{1: math.nan}, {1: "a"}, {1: 1e5}, {-1: 0.5}, {"1": 0.5}, {1: True}])
def test_a_wrong_bias_is_refused(biases: Any) -> None:
    with pytest.raises(InputError, match=r"^logit_bias"):
        SamplingParams(logit_bias=biases)


def test_numbers_of_numpy_and_lists_become_plain_values() -> None:
    made = SamplingParams(
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        top_k=np.int64(3),  # type: ignore[arg-type]
        stop="end",  # type: ignore[arg-type]
        stop_token_ids=[np.int32(4)],  # type: ignore[arg-type]
    )
    assert (made.temperature, made.top_k, made.stop, made.stop_token_ids) == (0.5, 3, ("end",), (4,))
    assert type(made.top_k) is int
    assert type(made.stop_token_ids[0]) is int


def manifest(**changed: Any) -> Manifest:
    data = {
        "vocab_size": 100,
        "eos_token_ids": [7, 3],
        "sampling": {},
        "io": dict.fromkeys(fmt.SAMPLING_INPUTS, 5),
        "programs": [fmt.PROGRAMS["decode"].stated(1, ["decode"])],
        "first_program": "decode",
    }
    return Manifest(Path("engine"), data | changed)


def test_what_is_left_open_is_the_models_default_or_neutral() -> None:
    found = SamplingParams(top_k=5).resolved(manifest(sampling={"temperature": 0.6, "top_p": 0.9, "top_k": 20}))
    assert (found.temperature, found.top_k, found.top_p, found.min_p, found.repetition_penalty) == (0.6, 5, 0.9, 0, 1)
    assert SamplingParams().resolved(manifest()).temperature == 0


def test_a_seed_is_drawn_where_one_is_needed() -> None:
    drawn = {SamplingParams(temperature=1).resolved(manifest()).seed for _ in range(4)}
    assert len(drawn) == 4
    assert SamplingParams(temperature=1, seed=9).resolved(manifest()).seed == 9
    assert SamplingParams().resolved(manifest()).seed == 0


def test_stop_ids_are_the_models_and_the_requests() -> None:
    assert SamplingParams(stop_token_ids=(5, 3)).resolved(manifest()).stop_token_ids == (3, 5, 7)
    assert SamplingParams(stop_token_ids=(5,), ignore_eos=True).resolved(manifest()).stop_token_ids == (5,)
    with pytest.raises(InputError, match="66 stop ids, the model's included, are too many, want at most 64"):
        SamplingParams(stop_token_ids=tuple(range(10, 74))).resolved(manifest())


@pytest.mark.parametrize("given", [{"logit_bias": {100: 1.0}}, {"stop_token_ids": (4, 100)}])
def test_an_id_outside_the_vocabulary_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match="has id 100, want ids from 0 to 99"):
        SamplingParams(**given).resolved(manifest())


@pytest.mark.parametrize(
    "given", [{"temperature": 0.5}, {"min_tokens": 2}, {"logit_bias": {1: 1.0}}, {"ignore_eos": True}, {"logprobs": 0}]
)
def test_a_greedy_engine_refuses_what_it_cannot_honour(given: Any) -> None:
    greedy = manifest(io={})
    (name,) = given
    with pytest.raises(InputError, match=f"^{name} is .*, and engine decodes greedily only"):
        SamplingParams(**given).resolved(greedy)


def test_a_greedy_engine_takes_neutral_values_whatever_the_model_recommends() -> None:
    greedy = manifest(io={}, sampling={"temperature": 0.9})
    assert SamplingParams(5, temperature=0, top_p=1, seed=3).resolved(greedy).temperature == 0
    assert SamplingParams().resolved(greedy).temperature == 0


def test_a_number_is_the_limit_of_new_tokens() -> None:
    assert params_of(8) == SamplingParams(max_new_tokens=8)
    assert params_of(None).max_new == 0xFFFFFFFF
    assert params_of(SamplingParams(8, top_k=2), 9) == SamplingParams(9, top_k=2)


def test_an_engine_takes_parameters_in_place_of_a_number(tmp_path: Path) -> None:
    with tilecompile.load(fake.make_engine(tmp_path / "engine")) as engine:
        want = engine.generate([2], 5).tokens
        assert engine.generate([2], SamplingParams(5)).tokens == want
        assert engine.generate([2], max_new_tokens=5).tokens == want
        assert list(engine.stream([2], SamplingParams(), max_new_tokens=5)) == want
        with pytest.raises(InputError, match=r"temperature is 0.5, and .* decodes greedily only"):
            engine.generate([2], SamplingParams(temperature=0.5))


def write(folder: Path, text: str) -> Path:
    (folder / "generation_config.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "defaults", "stops"),
    [
        ('{"do_sample": true, "temperature": 0.6, "top_p": 0.95, "eos_token_id": [3, 5]}', (0.6, 0.95), (3, 5)),
        ('{"do_sample": false, "temperature": 0.6, "eos_token_id": 3}', (0.0, None), (3,)),
        ('{"do_sample": true}', (1.0, None), ()),
        ('{"top_p": 0.5, "eos_token_id": null}', (None, 0.5), ()),
    ],
)
def test_a_generation_config_gives_defaults_and_stop_ids(tmp_path: Path, text: str, defaults: Any, stops: Any) -> None:
    found = read_generation(write(tmp_path, text), 10)
    assert (found.defaults.get("temperature"), found.defaults.get("top_p")) == defaults
    assert found.stops == stops


def test_a_checkpoint_without_generation_config_states_nothing(tmp_path: Path) -> None:
    assert read_generation(tmp_path, 10) == Generation()


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("{", "not valid JSON"),
        ("[]", "the content is a list, want an object"),
        ('{"temperature": -1}', "temperature is -1, want a number from 0"),
        ('{"eos_token_id": [11]}', "eos_token_id is .*, want ids from 0 to 9"),
        ('{"eos_token_id": true}', "eos_token_id is True, want ids from 0 to 9"),
    ],
)
def test_a_wrong_generation_config_is_refused(tmp_path: Path, text: str, want: str) -> None:
    with pytest.raises(InputError, match=f"generation_config.json: {want}"):
        read_generation(write(tmp_path, text), 10)
