"""Functions that tests/runtime/cuda/test_launch.py runs in processes with fake_cuda.py's driver: FUNCTION ENGINE OUT.

Results go to OUT, an .npz or .json file.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import tilecompile
from support.using import feeding
from tilecompile import SamplingParams
from tilecompile.errors import EngineError, EngineStalled
from tilecompile.runtime import load as loading

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
        *(compute, one_gpu, generated, replayed, drawn, stalls, attempts),
    )
    {f.__name__: f for f in functions}[sys.argv[1]](*sys.argv[2:])
