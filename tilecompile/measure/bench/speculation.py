"""Speculation: the time a token at each number of drafts, and with as many as the engine finds to pay, against none.

All are measured alternately in the same rounds. Weights that come from a checkpoint continue real texts, and drafts are
the model's own. Drawn weights hardly ever draft what they then say, so there a script takes the place of the drafts:
the tokens that the model is going to say, each with a given probability, and other ids in between. The steps are the
same ones and take as long. In both cases the tokens must be those that come without drafts.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tilecompile.errors import EngineError, InputError
from tilecompile.measure.bench.report import spread
from tilecompile.measure.steps import Generated, time_request, window
from tilecompile.runtime.cached import Ids
from tilecompile.runtime.engine import Engine
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.format import AUTO_DRAFTS, MAX_DRAFTS
from tilecompile.runtime.kernel import Resident
from tilecompile.runtime.progress import Count
from tilecompile.runtime.run import Ask

ACCEPTANCE = (0.4, 0.6, 0.8)
"""Rates at which drafts of drawn weights are accepted."""

LEAST_TOKENS, MOST_TOKENS = 32, 256
REQUEST_MS = 1500.0
"""About the longest time of a request without drafts, as far as LEAST_TOKENS allow."""

LEAST_ROUNDS, MOST_ROUNDS = 2, 9
SECONDS = 30.0
"""About the time of all rounds, as far as LEAST_ROUNDS allow."""

PIECES, PIECE_TOKENS = 3, 64
"""Prompts that a text is cut into, spread evenly over it, and their length."""

SHUFFLED = 20
"""Drafts of a script among which the order of right and wrong ones is drawn."""

AUTO = "auto"
BUILT_IN = Path(__file__).with_name("text.txt")
"""The Gettysburg Address (A. Lincoln, 1863), the text where none is given."""


@dataclass(frozen=True)
class Drafting:
    """What speculation is measured on: a file with a text, or rates of acceptance; neither leaves it to the engine."""

    text: Path | None = None
    acceptance: Sequence[float] = ()

    def check(self, manifest: Manifest) -> None:
        """InputError for what the engine can't do."""
        if self.text is None and not self.acceptance:
            return
        option = "--text" if self.text else "--acceptance"
        if not manifest.programs.drafts:
            raise InputError(f"{option} is for speculation, and {manifest.folder} drafts no tokens")
        if self.text and not manifest.tokenizer:
            raise InputError(f"--text is for an engine with a tokenizer, and {manifest.folder} has none")
        for rate in self.acceptance:
            if not 0 <= rate <= 1:
                raise InputError(f"--acceptance has {rate}, want 0 to 1")
        if self.text and not self.read().strip():
            raise InputError(f"--text {self.text}: has no text")

    def read(self) -> str:
        """The text. InputError if it can't be read."""
        path = self.text or BUILT_IN
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--text {path}: can't be read: {error}") from None


@dataclass
class Case:
    """Requests that are compared: where each begins (ids and position), and at which rate drafts are accepted, None if
    the model drafts. `plain` are the tokens of each without drafts, `scripts` what takes the place of its drafts."""

    text: str | None
    acceptance: float | None
    begins: list[tuple[Ids, int]]
    tokens: int
    plain: list[list[int]] = field(default_factory=list)
    scripts: list[Ids | None] = field(default_factory=list)

    def run(self, engine: Engine, kernel: Resident, drafts: int) -> list[Generated]:
        """Runs every request with that many drafts. EngineError if the tokens differ from those without."""
        found = []
        for i, (ids, position) in enumerate(self.begins):
            script = self.scripts[i] if drafts else None
            made = time_request(engine, kernel, Ask(ids, position, self.tokens, drafts=drafts, script=script))
            if made.tokens != self.plain[i]:
                raise EngineError(f"{engine.manifest.folder}: with drafts the tokens are others than without")
            found.append(made)
        return found

    def prepare(self, engine: Engine, kernel: Resident) -> float:
        """Generates the tokens without drafts, and from them the scripts; returns milliseconds a token."""
        each = []
        for ids, position in self.begins:
            made = time_request(engine, kernel, Ask(ids, position, self.tokens))
            self.plain.append(made.tokens)
            self.scripts.append(self._script(made.tokens, engine.manifest.vocab_size))
            each.append(made.ms_per_token)
        return median(each)

    def _script(self, tokens: Sequence[int], vocab: int) -> Ids | None:
        """Drafts i32 [tokens + MAX_DRAFTS] of which a part is right; number i is that of token i."""
        return None if self.acceptance is None else pinned(tokens, self.acceptance, vocab)


def pinned(tokens: Sequence[int], acceptance: float, vocab: int) -> Ids:
    """A script i32 [tokens + MAX_DRAFTS] for a request's tokens: each with probability `acceptance`, else another id.

    The right ones are spread evenly (their number never differs from its mean by one), in an order that is drawn within
    each SHUFFLED, so that a short request has the rate too.
    """
    random, script = np.random.default_rng(0), np.zeros(len(tokens) + MAX_DRAFTS, np.int32)
    script[: len(tokens)] = tokens
    for begin in range(0, len(script), SHUFFLED):
        part = np.arange(begin, min(begin + SHUFFLED, len(script)))
        right = np.floor((part + 1) * acceptance) > np.floor(part * acceptance)
        wrong = part[~random.permutation(right)]
        script[wrong] = (script[wrong] + 1) % vocab
    return script


def measure_speculation(
    engine: Engine, kernel: Resident, context: int, step_ms: float, asked: Drafting, progress: Count
) -> dict[str, Any] | None:
    """Measures an engine that drafts; None for one that doesn't.

    Returns `cases`, one for the text and one for each rate of acceptance, with `text` or `acceptance`, and `depths`:
    for 0 and each number of `drafts`, and AUTO, the median over the rounds of `ms_per_token` with their `spread`,
    `tokens_per_second`, `times_none` (how much faster than without drafts in the same round), `accepted_length` and
    `accepted` by depth. `best` is the number of drafts with the least time, AUTO apart. Requests have `tokens` each.
    """
    most = engine.manifest.programs.drafts
    depths: dict[int | str, int] = {d: d for d in range(most + 1)} | {AUTO: AUTO_DRAFTS}
    cases = _cases(engine, context, step_ms, asked) if most else []
    if not cases:
        return None
    each = [case.prepare(engine, kernel) * case.tokens * len(case.begins) for case in cases]
    seconds = sum(each) * len(depths) / 1e3
    rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, round(SECONDS / seconds)))
    for case, drafts in itertools.product(cases, depths.values()):
        case.run(engine, kernel, drafts)
    made: dict[tuple[int, int | str], list[list[Generated]]] = {}
    for i in range(rounds):
        progress(i, rounds)
        order = list(depths) if i % 2 else list(reversed(depths))
        for number, depth in itertools.product(range(len(cases)), order):
            made.setdefault((number, depth), []).append(cases[number].run(engine, kernel, depths[depth]))
    return {
        "drafts": most,
        "tokens": cases[0].tokens,
        "rounds": rounds,
        "cases": [_figures(case, {d: made[i, d] for d in depths}) for i, case in enumerate(cases)],
    }


def _cases(engine: Engine, context: int, step_ms: float, asked: Drafting) -> list[Case]:
    """What is measured: the text that was asked for, the rates, or what suits the engine's weights."""
    manifest, rates = engine.manifest, tuple(asked.acceptance)
    trained = manifest.data["weights"]["source"] == "checkpoint" and engine.text is not None
    tokens = round(min(MOST_TOKENS, max(LEAST_TOKENS, REQUEST_MS / step_ms)))
    cases = []
    if asked.text or (trained and not rates):
        assert engine.text is not None
        ids = np.array(engine.text.encode(asked.read()), np.int32)
        length = max(1, min(PIECE_TOKENS, len(ids) // PIECES, manifest.max_seq_len // 2))
        begins = [(ids[(len(ids) - length) * i // PIECES :][:length], 0) for i in range(PIECES)]
        most = min(max(LEAST_TOKENS, tokens // PIECES), manifest.max_seq_len - length)
        cases.append(Case(str(asked.text or "built in"), None, begins, most))
    elif not trained and not rates:
        rates = ACCEPTANCE
    contexts = window(context, tokens, manifest.max_seq_len)
    before = np.full(contexts.start - 1, contexts.start % manifest.vocab_size, np.int32)
    return cases + [Case(None, rate, [(before, len(before) - 1)], len(contexts)) for rate in rates]


def _figures(case: Case, made: Mapping[int | str, list[list[Generated]]]) -> dict[str, Any]:
    """The figures of a case, from its requests by depth and round."""
    ms = {d: [float(np.mean([g.ms_per_token for g in requests])) for requests in rounds] for d, rounds in made.items()}
    depths: list[dict[str, Any]] = []
    for depth, rounds in made.items():
        stats = [g.stats for requests in rounds for g in requests]
        reached = max(len(s.acceptance) for s in stats)
        depths.append(
            {
                "drafts": depth,
                "ms_per_token": median(ms[depth]),
                "spread": spread(ms[depth]),
                "tokens_per_second": 1e3 / median(ms[depth]),
                "times_none": median(none / mine for none, mine in zip(ms[0], ms[depth], strict=True)),
                "accepted_length": float(np.mean([s.accepted_length for s in stats])),
                "accepted": [
                    float(np.mean([s.acceptance[i] for s in stats if len(s.acceptance) > i])) for i in range(reached)
                ],
            }
        )
    fixed = [d for d in depths if d["drafts"] != AUTO]
    best = min(fixed, key=lambda d: d["ms_per_token"])["drafts"]
    return {"text": case.text, "acceptance": case.acceptance, "best": best, "depths": depths}
