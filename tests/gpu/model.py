"""Part `model`: the tiny checkpoint on one and on 8 virtual devices, against a CPU engine on the same text."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from gpu.folder import Folder

Json = dict[str, Any]

ERROR = 0.03
"""Stated error of a logit over the RMS of its position's logits, from 16-bit activations: no body is off by more than
4e-3 (part `ops`), and some 50 of them follow each other, whose errors are independent: 4e-3 · √50."""

REPEATS = 20
"""Times that a text is scored, with the same bits."""
SAMPLED = 32
"""Tokens of the request that samples."""
LOGPROB_ERROR = 1e-5
SHORT = 100
"""Positions of the text that is repeated."""


def gaps(logits: np.ndarray) -> np.ndarray:
    """By how much the largest logit exceeds the second, for each position."""
    top = np.partition(logits, -2, axis=-1)[:, -2:]
    return np.asarray(top[:, 1] - top[:, 0])


def compare(got: np.ndarray, want: np.ndarray) -> Json:
    """Logits [positions, vocab] against those of another engine.

    `error` is the largest over the RMS of the expected logits. Positions `decided` have a gap between the two
    largest logits of more than twice ERROR times the RMS, so that no error within ERROR can change the choice; of these
    `argmax_differs` must be none.
    """
    rms = np.sqrt((want.astype(np.float64) ** 2).mean(-1))
    errors = np.abs(got.astype(np.float64) - want).max(-1) / rms
    decided = gaps(want) > 2 * ERROR * rms
    differs = (got.argmax(-1) != want.argmax(-1)) & decided
    return {
        "positions": len(want),
        "error": float(errors.max()),
        "median_error": float(np.median(errors)),
        "decided": int(decided.sum()),
        "argmax_differs": int(differs.sum()),
        "first_difference": int(differs.argmax()) if differs.any() else None,
    }


def sampled(engine: Any, prompt: list[int]) -> Json:
    """A request with every parameter: its tokens against the rules in numpy, on the logits that the engine has there.

    `wrong` counts tokens that are others, without drafts too, and `logprob_error` is the largest error of one.
    """
    from tilecompile import SamplingParams
    from tilecompile.ops.sample.reference import choose
    from tilecompile.runtime.sampler import sampling_record

    filters = {"temperature": 0.9, "top_k": 60, "top_p": 0.97, "min_p": 1e-3, "logit_bias": {7: 1.0, 9: -3.0}}
    penalties = {"repetition_penalty": 1.2, "presence_penalty": 0.1, "frequency_penalty": 0.2}
    params = SamplingParams(SAMPLED, seed=11, logprobs=5, min_tokens=3, **filters, **penalties)
    made = engine.generate(prompt, params)
    plain = engine.generate(prompt, dataclasses.replace(params, drafts=0)).tokens
    logits = engine.score([*prompt, *made.tokens])[len(prompt) - 1 : -1]
    resolved = params.resolved(engine.manifest)
    record, vocab = sampling_record(resolved, len(prompt))[0], engine.manifest.vocab_size
    bias = np.zeros(vocab, np.float32)
    bias[list(resolved.logit_bias)] = list(resolved.logit_bias.values())
    wide = logits.astype(np.float64)
    each = wide - wide.max(-1, keepdims=True)
    each -= np.log(np.exp(each).sum(-1, keepdims=True))
    wrong, error = 0, 0.0
    for i, token in enumerate(made.tokens):
        counts = np.zeros(vocab, np.int32)
        counts[prompt[: None if i else -1]] = 1
        np.add.at(counts, made.tokens[: max(0, i - 1)], 2)
        last = np.array([made.tokens[i - 1] if i else prompt[-1]], np.int32)
        wrong += choose(record, logits[i], bias, counts, last, len(prompt) + i - 1) != token
        pairs = [(token, made.logprobs[i].logprob), *made.logprobs[i].top]
        error = max(error, *(abs(value - each[i][one]) for one, value in pairs))
    wrong += sum(a != b for a, b in zip(plain, made.tokens, strict=True)) if len(plain) == len(made.tokens) else 1
    return {"tokens": len(made.tokens), "wrong": int(wrong), "logprob_error": float(error)}


def check_engine(engine: Any, folder: Folder, end: float) -> Json:
    """One loaded engine: logits with its own selections and with the CPU engine's, tokens, repetitions."""
    from tilecompile.runtime.replay.selections import Selections

    about = folder.index["tiny"]
    with np.load(folder.path(about["results"])) as file:
        ids, want, tokens = file["ids"].tolist(), file["logits"], file["generated"].tolist()
    selections = Selections.load(folder.path(about["selections"]))
    begin = time.monotonic()
    free = engine.score(ids)
    took = time.monotonic() - begin
    replayed = engine.score(ids, selections=selections)
    found: Json = {
        "ms_per_step": 1e3 * took / len(ids),
        "free": compare(free, want),
        "replayed": compare(replayed, want),
        "tokens_equal": engine.generate(ids[:16], len(tokens)).tokens == tokens,
    }
    repeats = equal = 0
    first = engine.score(ids[:SHORT])
    while repeats < REPEATS and time.monotonic() < end:
        repeats += 1
        equal += engine.score(ids[:SHORT]).tobytes() == first.tobytes()
    found |= {"repeats": repeats, "repeats_equal": equal, "same_as_longer": bool(np.array_equal(first, free[:SHORT]))}
    found["sampled"] = sampled(engine, ids[:16])
    found["passed"] = passed(found)
    return found


def passed(found: Json) -> bool:
    """Whether an engine's figures are as they should be."""
    replayed = found["replayed"]
    same = found["repeats"] == REPEATS == found["repeats_equal"] and found["same_as_longer"]
    chosen = not found["sampled"]["wrong"] and found["sampled"]["logprob_error"] <= LOGPROB_ERROR
    return bool(same and chosen and replayed["error"] <= ERROR and not replayed["argmax_differs"])


def run(folder: Folder, seconds: float, earlier: Json) -> Json:
    """Both engines, of which the second has its devices on one GPU."""
    from tilecompile.runtime.load import load

    found: Json = {"stated_error": ERROR, "engines": {}}
    begin = time.monotonic()
    engines = folder.index["tiny"]["engines"]
    for i, (name, about) in enumerate(engines.items()):
        options = {"on_one_gpu": True} if about["devices"] > 1 else {}
        with load(folder.path(name), **options) as engine:
            found["engines"][name] = check_engine(engine, folder, begin + seconds * (i + 1) / len(engines))
    found["passed"] = all(one["passed"] for one in found["engines"].values())
    found["summary"] = [(name, *_words(one)) for name, one in found["engines"].items()]
    return found


def _words(one: Json) -> tuple[str, str]:
    replayed, free = one["replayed"], one["free"]
    return (
        f"{replayed['positions']} positions, error {replayed['error']:.1e} of RMS with selections replayed, "
        f"argmax differs at {replayed['argmax_differs']} of {replayed['decided']}; "
        f"without replay {free['error']:.1e} and {free['argmax_differs']}",
        f"{one['repeats_equal']} of {one['repeats']} repeats equal, "
        f"{one['sampled']['wrong']} of {one['sampled']['tokens']} sampled tokens wrong",
    )
