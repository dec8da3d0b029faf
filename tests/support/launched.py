"""Functions that tests/runtime/cuda/test_launch.py runs in processes with fake_cuda.py's driver: FUNCTION ENGINE OUT.

Results go to OUT, an .npz or .json file.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

import tilecompile
from support import fake_engine
from support.using import feeding
from tilecompile import SamplingParams
from tilecompile.errors import EngineError, EngineStalled, InputError
from tilecompile.measure.bench.speculation import pinned
from tilecompile.runtime import load as loading
from tilecompile.runtime.run import Ask

Bits = npt.NDArray[np.bool_]
VOCAB = fake_engine.VOCAB
IDS = [3, 17, 25, 9, 44, 12, 8, 8, 77]
NEW = 6
PATIENCE = 20.0  # seconds; the machine may be busy


def compute(engine: str, out: str) -> None:
    """Everything that an engine is asked for, several times."""
    found: dict[str, Any] = {}
    with tilecompile.load(engine, stall_seconds=PATIENCE) as e:
        found["logits"] = e.score(IDS)
        found["tokens"] = e.generate(IDS, NEW).tokens
        stream = e.stream(IDS, None)
        found["begun"] = [next(stream), next(stream)]
        stream.close()  # aborts it
        e.score(IDS[:5])
        found["rest"] = e.score(IDS[5:], start=5)
        turn = [*IDS, *found["tokens"], 5]
        out_of = e.generate(turn, SamplingParams(2, drafts=0))
        cached = out_of.stats.cached_tokens
        found["turn"] = [cached, out_of.stats.steps - feeding(e, len(turn) - cached), *out_of.tokens]
        kept = e.cached
        e.save_cache(f"{out}.cache")
        e.generate([1, 2], 1)
        e.load_cache(f"{out}.cache")
        found["kept"], found["gone_on"] = kept, e.score([7, 8], start=len(kept))
        found["buffers"] = sum(a.size for a in e.buffers_after(IDS[:1]).values())
        found["launches"] = e.stats.launches
    with tilecompile.load(engine, stall_seconds=PATIENCE) as e:
        found["again"] = e.score(IDS)
        found["fresh"] = e.score([*kept, 7, 8])[len(kept) :]
        e.reset()
        found["fresh_turn"] = e.generate(turn, 2).tokens
    np.savez(out, **found)


def one_gpu(engine: str, out: str) -> None:
    """All devices on one GPU."""
    with tilecompile.load(engine, stall_seconds=PATIENCE, on_one_gpu=True) as e:
        np.savez(out, logits=e.score(IDS))


def generated(engine: str, out: str) -> None:
    """What an engine with a stop id generates."""
    with tilecompile.load(engine, stall_seconds=PATIENCE) as e:
        np.savez(out, tokens=e.generate(IDS, NEW).tokens, logits=e.score(IDS))


def even(tokens: Sequence[int]) -> Bits:
    """A mask: even ids after an even number of tokens, ids that are multiples of 3 after an odd one."""
    return np.arange(VOCAB) % (3 if len(tokens) % 2 else 2) == 0


EVERYTHING: dict[str, Any] = {
    "max_new_tokens": 12,
    "temperature": 0.9,
    "seed": 11,
    "top_k": 60,
    "top_p": 0.97,
    "min_p": 0.001,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.2,
    "logit_bias": {7: 1.0, 9: -3.0},
    "logprobs": 5,
    "min_tokens": 3,
}
REQUESTS: dict[str, dict[str, Any]] = {
    "everything": EVERYTHING,
    "warm": {"max_new_tokens": 8, "temperature": 0.7, "seed": 3, "drafts": 0},
    "penalties": {"max_new_tokens": 8, "repetition_penalty": 1.5, "frequency_penalty": 0.5, "drafts": 2},
    "masked": {"max_new_tokens": 5, "temperature": 1.0, "seed": 4, "allowed_tokens": even, "logprobs": 20},
    "biased": {"max_new_tokens": 2, "logit_bias": {5: 100.0}, "logprobs": 0},
    "greedy": {"max_new_tokens": 6, "logprobs": 2},
}
"""Requests of a conversation: what each turn asks for."""


def talked(e: Any, drafts: int | str | None = None, names: Sequence[str] = tuple(REQUESTS)) -> dict[str, Any]:
    """What an engine says in a conversation of REQUESTS, each turn of which takes up the text so far.

    Tokens and log-probabilities of each turn; `drafts` takes the place of what turns ask for that may draft.
    """
    found: dict[str, Any] = {}
    text = list(IDS)
    e.reset()
    for name in names:
        asked = REQUESTS[name]
        own = {} if drafts is None or "allowed_tokens" in asked else {"drafts": drafts}
        made = e.generate(text, SamplingParams(**asked | own))
        text += made.tokens
        found[name] = made.tokens
        if made.logprobs is not None:
            found[f"{name} logprobs"] = [one.logprob for one in made.logprobs]
            found[f"{name} top"] = [[pair for top in one.top for pair in top] for one in made.logprobs]
    return found


def sampled(engine: str, out: str) -> None:
    """Two turns, and requests that end early."""
    with tilecompile.load(engine, stall_seconds=PATIENCE) as e:
        found = talked(e, names=("everything", "masked"))
        stop = found["everything"][1]
        e.reset()
        stopping = EVERYTHING | {"min_tokens": 0, "stop_token_ids": (stop, VOCAB - 1)}
        found["stopped"] = e.generate(IDS, SamplingParams(**stopping)).tokens
        try:
            e.generate(IDS, SamplingParams(4, allowed_tokens=lambda tokens: np.arange(VOCAB) < 5 * (not tokens)))
        except InputError as error:
            found["refused"] = str(error)
        stream = e.stream(IDS, SamplingParams(9, allowed_tokens=even))
        found["begun"] = next(stream)
        stream.close()  # aborts it, most likely in a pause
        found["after"] = e.generate(IDS, SamplingParams(1, temperature=0)).tokens
    np.savez(out, **{name: np.array(value) for name, value in found.items()})


def conversations(engine: str, out: str) -> None:
    """All turns, without drafts, with as many as there can be, and with as many as pay."""
    with tilecompile.load(engine, stall_seconds=PATIENCE) as e:
        found = {f"{d} {n}": value for d in (None, 0, e.manifest.programs.drafts) for n, value in talked(e, d).items()}
    np.savez(out, **{name: np.array(value) for name, value in found.items()})


def depths(engine: str, out: str) -> None:
    """The steps by program of a request that leaves the depth to the engine, and of one that fixes it."""
    with tilecompile.load(engine, stall_seconds=PATIENCE) as e:
        row = e.manifest.programs.rows[e.manifest.programs.first]
        steps = {}
        for name, drafts in (("auto", "auto"), ("fixed", e.manifest.programs.drafts)):
            e.reset()
            steps[name] = e.generate(IDS, SamplingParams(24, drafts=drafts)).stats.program_steps
        np.savez(out, numbers=[row["on_verify"], row["on_token"]], **steps)


def scripted(engine: str, out: str) -> None:
    """Tokens, and the drafts that were accepted, where a script takes the place of drafts."""
    found: dict[str, Any] = {}
    with tilecompile.load(engine, stall_seconds=PATIENCE) as e:
        ids, new = np.array(IDS, np.int32), 16
        plain = e.generate(IDS, SamplingParams(new, drafts=0)).tokens
        for rate in (0.0, 0.5, 1.0):
            e.reset()
            ask = Ask(ids, 0, len(plain), drafts=e.manifest.programs.drafts, script=pinned(plain, rate, VOCAB))
            with e._requests.start(ask) as run:
                run.wait(len(plain))
            found[f"tokens {rate}"], found[f"rate {rate}"] = run.tokens(), run.stats().acceptance
        found["plain"] = plain
    np.savez(out, **found)


def replayed(engine: str, out: str) -> None:
    """An engine's own selections, replayed."""
    with tilecompile.load(engine, stall_seconds=PATIENCE) as e:
        ids = IDS[:4]
        want, selections = e.score(ids), e.selections(ids)
        np.savez(out, want=want, got=e.score(ids, selections=selections), after=e.score(ids))


def drawn(engine: str, out: str) -> None:
    """Weights and logits of drawn weights, twice of a seed and once of another."""
    found = {}
    for name, seed in (("first", 1), ("second", 1), ("other", 2)):
        with tilecompile.load(engine, stall_seconds=PATIENCE, weights=f"random:{seed}") as e:
            size = int(e.manifest.pools[0]["bytes"])
            found[name], found[f"{name}_logits"] = e.backend.read(0, "weight", 0, size), e.score(IDS[:3])
    np.savez(out, **found)


def stalls(engine: str, out: str) -> None:
    """A wait for more than comes; then a request again."""
    load_tables = loading.load_tables

    def wrong(manifest: Any) -> Any:
        tables = load_tables(manifest)
        tables["waits"]["count"] += 1
        return tables

    said = []
    with mock.patch.object(loading, "load_tables", wrong), tilecompile.load(engine, stall_seconds=1) as e:
        for _ in range(2):
            try:
                e.score(IDS)
            except EngineStalled as error:
                said.append(str(error))
        launches = e.stats.launches
    Path(out).write_text(json.dumps({"said": said, "launches": launches}))


# --- many tries in one process ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def driver(folder: Path, settings: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The driver with other settings; in the end the mapping has its report, less what earlier tries have left."""
    library, report = ctypes.CDLL("libcuda.so.1"), folder / "now.json"
    path = ctypes.c_char_p(os.fsencode(report))
    names = {f"FAKE_CUDA_{name}": value for name, value in settings.items()}
    with mock.patch.dict(os.environ, names):
        library.fake_cuda_again(path)
        before = json.loads(report.read_text())["live"]
        found: dict[str, Any] = {}
        yield found
        library.fake_cuda_again(path)
        found |= json.loads(report.read_text())
        found["live"] = {name: count - before[name] for name, count in found["live"].items()}


def use(engine: str) -> str:
    """Loads an engine, and has it do something: the error, or nothing."""
    try:
        with tilecompile.load(engine, stall_seconds=PATIENCE) as e:
            e.score(IDS[:2])
    except EngineError as error:
        return str(error)
    return ""


def attempts(engine: str, out: str) -> None:
    """Uses an engine under each of the settings in OUT, a list; writes there the messages and the report.

    A process for each would cost seconds.
    """
    path = Path(out)
    results = []
    for settings in json.loads(path.read_text()):
        with driver(path.parent, settings) as report:
            said = use(engine)
        results.append({"said": said, **report})
    path.write_text(json.dumps(results))


if __name__ == "__main__":
    functions: tuple[Callable[[str, str], None], ...] = (
        *(compute, one_gpu, generated, sampled, conversations, depths, scripted, replayed, drawn, stalls, attempts),
    )
    {f.__name__: f for f in functions}[sys.argv[1]](*sys.argv[2:])
