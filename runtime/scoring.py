"""Scoring: the logits after each id of a text, fed in pieces, with the engine's own choices or with given ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilecompile.runtime.cached import Ids
from tilecompile.runtime.errors import InputError
from tilecompile.runtime.replay.replay import Loaded, Logits, prepared, record, replay_score
from tilecompile.runtime.replay.selections import Selections
from tilecompile.runtime.requests import Requests
from tilecompile.runtime.run import Ask


def check_start(ids: Ids, start: Any, max_seq_len: int) -> int:
    """The position of the first of some ids. InputError unless it is a number and they all fit behind it."""
    if isinstance(start, bool) or not isinstance(start, (int, np.integer)):
        raise InputError(f"start is {start!r}, want a whole number")
    if start + len(ids) > max_seq_len:
        end = f"{len(ids)} ids from position {start}"
        raise InputError(f"{end} are too many, the engine's max_seq_len is {max_seq_len}")
    return int(start)


def _whole(requests: Requests, ids: Ids, start: int) -> Ids:
    """The ids of all positions, those before `start` as the caches hold them. InputError if they hold fewer."""
    held = requests.cached.ids
    if not 0 <= start <= len(held):
        raise InputError(f"start is {start}, want 0 to {len(held)} (positions that the caches hold)")
    return np.concatenate([held[:start], ids])


def score(requests: Requests, ids: Ids, start: int) -> Logits:
    """Logits [len(ids), vocab] after each id, from position `start` on; the engine must be held."""
    whole = _whole(requests, ids, start)
    logits: Logits = np.zeros((len(ids), requests.manifest.vocab_size), np.float32)
    most = requests.kernel.logit_rows or len(ids)
    for begin in range(0, len(ids), most):
        rows = logits[begin : begin + most]
        ask = Ask(whole[: start + begin + len(rows)], start + begin, 0, rows)
        with requests.start(ask, counted=False) as run:
            run.wait(0)
    requests.count(len(ids))
    return logits


def score_with(engine: Loaded, requests: Requests, ids: Ids, start: int, selections: Selections) -> Logits:
    """Logits as `score` returns them, of steps that use given choices, whatever the engine would choose."""
    whole = _whole(requests, ids, start)
    replay = prepared(engine, selections, start, len(ids))
    kept = requests.cached.before(start)
    logits = replay_score(engine, replay, whole, selections)
    requests.cached = kept.after(ids, given=True)
    requests.count(len(ids))
    return logits


def select(engine: Loaded, requests: Requests, ids: Ids, start: int) -> Selections:
    """What an engine selects while it is fed as by `score`; the engine must be held."""
    whole = _whole(requests, ids, start)
    kept = requests.cached = requests.cached.before(start)
    selections = record(engine, requests.kernel, whole, start)
    requests.cached = kept.after(ids)
    requests.count(len(ids))
    return selections
