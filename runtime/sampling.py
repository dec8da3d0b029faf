"""How tokens are chosen: `SamplingParams`, what a request asks for, checked in one place.

The rules themselves are in `ops/sample`: what the numbers do, in which order, and which ids they leave.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import EllipsisType
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.errors import InputError
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.format import AUTO_DRAFTS, MAX_DRAFTS, MAX_LOGPROBS, MAX_STOP_IDS, RECOMMENDED
from tilecompile.runtime.validate import Number

MAX_STOPS, MAX_STOP_LENGTH = 64, 1024
"""Stop strings of a request, and characters of each."""

MAX_BIASES = 4096
"""Ids of a request that can have a bias."""

BIAS = Number(-1e4, most=1e4)
"""Limits of a bias."""

LEAST_TEMPERATURE = 0.001
"""Below it, other than 0, quotients could exceed the range of f32."""

MAX_NUMBER = 0xFFFFFFFF
"""What stands for "no limit" of the tokens to generate."""

NextMask = Callable[[Sequence[int]], npt.ArrayLike]
"""Gets the tokens that were generated so far; returns the ids that may follow as a mask: bool [vocab], or uint8
[vocab / 8 rounded up], bit i % 8 of byte i / 8 for id i."""

NUMBERS: dict[str, Number] = {
    "temperature": Number(0, most=100),
    "top_k": Number(0, whole=True, most=MAX_NUMBER),
    "top_p": Number(0, above=True, most=1),
    "min_p": Number(0, most=1),
    "repetition_penalty": Number(0, above=True, most=100),
    "presence_penalty": Number(-100, most=100),
    "frequency_penalty": Number(-100, most=100),
    "seed": Number(0, whole=True, most=(1 << 64) - 1),
    "logprobs": Number(0, whole=True, most=MAX_LOGPROBS),
    "min_tokens": Number(0, whole=True, most=MAX_NUMBER),
}
"""Limits of the numbers of a request."""

OPTIONAL = frozenset({"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "logprobs"})
"""Those of them that may be None."""

DEFAULTS: dict[str, float] = dict(zip(RECOMMENDED, (0.0, 0, 1.0, 0.0, 1.0), strict=True))
"""What holds where neither the request nor the model's `generation_config.json` says anything: greedy decoding."""


@dataclass(frozen=True)
class SamplingParams:
    """What a request asks for besides its prompt. InputError in one line for what can't be meant.

    - `max_new_tokens`: tokens at most; None: until a stop id or a full context.
    - `temperature`: 0 takes the likeliest token. `top_k` keeps the k likeliest (0: all), `top_p` the likeliest whose
      probabilities reach p (1: all), `min_p` those with at least that fraction of the likeliest one's probability.
      None is the model's default (`generation_config.json`), or else no filter at all and temperature 0.
    - `repetition_penalty` divides the logits of all ids of prompt and text (multiplies negative ones),
      `presence_penalty` is subtracted from those of ids in the text, `frequency_penalty` once for each occurrence.
    - `logit_bias`: what is added to the logit of an id. All of these act before `temperature`.
    - `seed`: the same seed gives the same text; None draws one, which `Stats.seed` names.
    - `logprobs`: with every token come its log-probability and those of this many likeliest ids, by the model alone.
    - `min_tokens`: before so many tokens no stop id can be chosen. `stop`: texts that end the generation, and are left
      out unless `include_stop`; `stop_token_ids`: ids that do, besides the model's; `ignore_eos` ignores the model's.
    - `drafts`: most tokens that a round of speculation drafts, 0 to 7; None or "auto": as many as pay, which the engine
      measures. Never changes the text.
    - `allowed_tokens`: called before each token (`NextMask`), for grammars.
    """

    max_new_tokens: int | None = 64
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int | None = None
    logprobs: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    drafts: int | str | None = None
    allowed_tokens: NextMask | None = None

    def __post_init__(self) -> None:
        """Checks all fields; sequences become tuples, and numpy's numbers Python's."""
        for name, value in self._checked().items():
            object.__setattr__(self, name, value)

    def _checked(self) -> dict[str, Any]:
        checked: dict[str, Any] = {"max_new_tokens": self.max_new_tokens}
        if self.max_new_tokens is not None:
            value = _whole(self.max_new_tokens)
            if value is None or value < 1:
                raise InputError(f"max_new_tokens is {self.max_new_tokens!r}, want a whole number from 1, or None")
            checked["max_new_tokens"] = value
        for name, limits in NUMBERS.items():
            checked[name] = _number(name, getattr(self, name), limits)
        if 0 < (checked["temperature"] or 0) < LEAST_TEMPERATURE:
            raise InputError(f"temperature is {self.temperature!r}, want 0 or at least {LEAST_TEMPERATURE}")
        checked["logit_bias"] = _biases(self.logit_bias)
        checked["stop"] = _strings(self.stop)
        checked["stop_token_ids"] = _ids("stop_token_ids", self.stop_token_ids, MAX_STOP_IDS)
        for name in ("include_stop", "ignore_eos"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}, want True or False")
        if self.drafts is not None and self.drafts != "auto":
            depth = _whole(self.drafts)
            if depth is None or not 0 <= depth <= MAX_DRAFTS:
                raise InputError(f"drafts is {self.drafts!r}, want 0 to {MAX_DRAFTS}, 'auto' or None")
            checked["drafts"] = depth
        if self.allowed_tokens is not None and not callable(self.allowed_tokens):
            raise InputError(
                f"allowed_tokens is {self.allowed_tokens!r}, want a function of the tokens so far, or None"
            )
        return checked

    def resolved(self, manifest: Manifest) -> SamplingParams:
        """The parameters for an engine: its defaults in place of None, a seed drawn where one is needed, and in
        `stop_token_ids` all ids that end the request, ascending.

        InputError for ids that the vocabulary doesn't have, and for more than an engine that only decodes greedily
        can do.
        """
        own = DEFAULTS
        if manifest.samples:
            own = DEFAULTS | manifest.sampling_defaults
        else:
            self._greedy(manifest)
        values: dict[str, Any] = {
            name: own[name] if getattr(self, name) is None else getattr(self, name) for name in own
        }
        most = manifest.programs.drafts
        if isinstance(self.drafts, int) and self.drafts > most:
            raise InputError(f"drafts is {self.drafts}, and {manifest.folder} drafts {most or 'none'} at most")
        for name in ("logit_bias", "stop_token_ids"):
            for i in getattr(self, name):
                if i >= manifest.vocab_size:
                    raise InputError(f"{name} has id {i}, want ids from 0 to {manifest.vocab_size - 1}")
        stops = {*self.stop_token_ids, *(() if self.ignore_eos else manifest.eos_token_ids)}
        if len(stops) > MAX_STOP_IDS:
            raise InputError(f"{len(stops)} stop ids, the model's included, are too many, want at most {MAX_STOP_IDS}")
        seed = self.seed
        if seed is None:
            seed = int.from_bytes(os.urandom(8)) >> 1 if values["temperature"] else 0
        return replace(self, **values, seed=seed, stop_token_ids=tuple(sorted(stops)))

    def _greedy(self, manifest: Manifest) -> None:
        """InputError for the first parameter that an engine which only decodes greedily can't honour."""
        neutral = {**DEFAULTS, "seed": self.seed}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in ANYWHERE or value in (getattr(GREEDY, f.name), neutral.get(f.name)):
                continue
            raise InputError(
                f"{f.name} is {value!r}, and {manifest.folder} decodes greedily only: its kernel doesn't sample"
            )

    def depth(self, manifest: Manifest) -> int:
        """Tokens that a round of speculation drafts at most, as kernels take it.

        Left to the engine, the kernel finds the depth that pays. None are drafted where each token has a mask of its
        own.
        """
        if self.allowed_tokens is not None:
            return 0
        if isinstance(self.drafts, int):
            return self.drafts
        return AUTO_DRAFTS if manifest.programs.drafts else 0

    @property
    def max_new(self) -> int:
        """`max_new_tokens` as a kernel takes it."""
        return MAX_NUMBER if self.max_new_tokens is None else min(self.max_new_tokens, MAX_NUMBER)


def _whole(value: Any) -> int | None:
    """A whole number as Python has it; None for anything else, a bool included."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _number(name: str, value: Any, limits: Number) -> float | int | None:
    if value is None and name in OPTIONAL:
        return None
    plain = _whole(value) if limits.whole else float(value) if isinstance(value, (np.floating, np.integer)) else value
    if not limits.allows(plain):
        raise InputError(f"{name} is {value!r}, want {limits}{' or None' if name in OPTIONAL else ''}")
    return plain if limits.whole else float(plain)  # type: ignore[arg-type]  # `allows` has seen a number


def _items(name: str, value: Any, what: str, most: int) -> list[Any]:
    """The items of a sequence. InputError unless it is one, of at most `most`."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise InputError(f"{name} is {value!r}, want a list of {what}")
    items = list(value)
    if len(items) > most:
        raise InputError(f"{name} has {len(items)} entries, want at most {most}")
    return items


def _ids(name: str, value: Any, most: int) -> tuple[int, ...]:
    ids = []
    for item in _items(name, value, "token ids", most):
        number = _whole(item)
        if number is None or number < 0:
            raise InputError(f"{name} has {item!r}, want token ids")
        ids.append(number)
    return tuple(ids)


def _strings(value: Any) -> tuple[str, ...]:
    items = _items("stop", [value] if isinstance(value, str) else value, "texts", MAX_STOPS)
    for item in items:
        if not isinstance(item, str) or not 1 <= len(item) <= MAX_STOP_LENGTH:
            shown = f"a text of {len(item)} characters" if isinstance(item, str) else repr(item)
            raise InputError(f"stop has {shown}, want texts of 1 to {MAX_STOP_LENGTH} characters")
    return tuple(items)


def _biases(value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise InputError(f"logit_bias is {value!r}, want numbers by token id")
    ids = _ids("logit_bias", value.keys(), MAX_BIASES)
    for i, bias in zip(ids, value.values(), strict=True):
        if not BIAS.allows(float(bias) if isinstance(bias, np.floating) else bias):
            raise InputError(f"logit_bias of id {i} is {bias!r}, want {BIAS}")
    return {i: float(bias) for i, bias in zip(ids, value.values(), strict=True)}


GREEDY = SamplingParams()
"""What asks for nothing."""

ANYWHERE = frozenset({"max_new_tokens", "seed", "stop", "include_stop", "drafts"})
"""Parameters that mean something to an engine which only decodes greedily."""


def params_of(given: SamplingParams | int | None, max_new_tokens: int | EllipsisType | None = ...) -> SamplingParams:
    """A request's parameters: given as such, or as the `max_new_tokens` of one that asks for nothing else.

    `max_new_tokens`, if given by itself, takes the place of what the parameters say.
    """
    params = given if isinstance(given, SamplingParams) else SamplingParams(max_new_tokens=given)
    return params if isinstance(max_new_tokens, EllipsisType) else replace(params, max_new_tokens=max_new_tokens)
