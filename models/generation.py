"""The `generation_config.json` of a checkpoint: what its makers recommend for sampling, and the ids that end a text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilecompile.models.files import read_object
from tilecompile.runtime.errors import InputError
from tilecompile.runtime.sampling import DEFAULTS, SamplingParams

FILE = "generation_config.json"


@dataclass(frozen=True)
class Generation:
    """Defaults of `SamplingParams` by name, as far as the file states them, and stop ids."""

    defaults: dict[str, float] = field(default_factory=dict)
    stops: tuple[int, ...] = ()


NOTHING_STATED = Generation()


def read_generation(folder: Path, vocab: int) -> Generation:
    """Reads the file of a checkpoint's folder; nothing is stated where there is none.

    As in transformers, decoding is greedy where `do_sample` is false, and temperature 1 where it is true and no
    temperature is stated. InputError for a file that can't be read or states what can't be meant.
    """
    path = folder / FILE
    if not path.is_file():
        return NOTHING_STATED
    values = read_object(path)
    defaults = {name: values[name] for name in DEFAULTS if values.get(name) is not None}
    if values.get("do_sample") is False:
        defaults["temperature"] = 0.0
    elif values.get("do_sample"):
        defaults.setdefault("temperature", 1.0)
    try:
        checked = SamplingParams(**defaults)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return Generation({name: getattr(checked, name) for name in defaults}, _stops(path, values, vocab))


def _stops(path: Path, values: dict[str, Any], vocab: int) -> tuple[int, ...]:
    stated = values.get("eos_token_id")
    ids = [] if stated is None else stated if isinstance(stated, list) else [stated]
    if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < vocab for i in ids):
        raise InputError(f"{path}: eos_token_id is {stated!r}, want ids from 0 to {vocab - 1}")
    return tuple(ids)
