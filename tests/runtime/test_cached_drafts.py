"""Caches of the MTP layer outlive a request too: a later one drafts with the rows and the acceptance of a fresh run."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tilecompile
from support.paths import ROOT
from support.using import PROMPT
from tilecompile.compile import compile_model
from tilecompile.measure.steps import fill_caches
from tilecompile.options import CompileOptions
from tilecompile.runtime.folder.caches import cache_buffers
from tilecompile.runtime.generate import Output
from tilecompile.runtime.sampling import SamplingParams

LONG = 100_000


@pytest.fixture(scope="module")
def fresh(tiny: Path) -> Iterator[tilecompile.Engine]:
    """An engine that tests let compute everything."""
    with tilecompile.load(tiny, threads=2) as engine:
        yield engine


def drafts(engine: tilecompile.Engine) -> int:
    """The positions that the caches of the MTP layer hold."""
    return engine._requests.cached.drafts


def rows(engine: tilecompile.Engine, positions: int) -> bytes:
    """The first positions of all caches of the MTP layer, on all devices."""
    found = [c for c in cache_buffers(engine.manifest, engine.tables) if c.drafts]
    assert found
    return b"".join(
        engine.backend.read(c.device, "cache", c.begin, c.begin + c.bytes_of(positions)).tobytes() for c in found
    )


def check(engine: tilecompile.Engine, fresh: tilecompile.Engine, prompt: list[int], count: int) -> Output:
    """A request with drafts comes to the tokens, the acceptance and the rows of one that computes everything."""
    params = SamplingParams(count, drafts=2)
    out = engine.generate(prompt, params)
    fresh.reset()
    want = fresh.generate(prompt, params)
    assert out.tokens == want.tokens
    assert (out.stats.acceptance, out.stats.accepted_length) == (want.stats.acceptance, want.stats.accepted_length)
    assert drafts(engine) == drafts(fresh) >= len(prompt) - 1
    assert rows(engine, drafts(engine)) == rows(fresh, drafts(fresh))
    return out


@pytest.mark.parametrize(("first", "second"), [(0, 0), (2, 0), (0, 2), (2, 2)])
def test_a_turn_goes_on_with_the_caches_that_it_needs(
    engine: tilecompile.Engine, fresh: tilecompile.Engine, first: int, second: int
) -> None:
    out = engine.generate(PROMPT, SamplingParams(30, drafts=first))
    held = [*PROMPT, *out.tokens[:-1]]
    assert engine.cached == held
    assert (drafts(engine) > 0) == (first > 0)
    common = min(len(held) - 1, drafts(engine)) if second else len(held)
    turn = [*held, out.tokens[-1], 5, 6]
    if second:
        assert check(engine, fresh, turn, 20).stats.cached_tokens == common
    else:
        got = engine.generate(turn, SamplingParams(20, drafts=0))
        assert got.stats.cached_tokens == common
        assert got.tokens == fresh.generate(turn, SamplingParams(20, drafts=0)).tokens
        assert drafts(engine) <= common  # what is not gone on with stays valid as far as it went


def test_a_turn_goes_on_after_aborts(engine: tilecompile.Engine, fresh: tilecompile.Engine) -> None:
    rng = random.Random(3)
    reused = 0
    for seconds in (0.001, 0.003, 0.01, 0.03):
        text = [rng.randrange(256) for _ in range(2000)]
        for prompt in (text, PROMPT):
            stream = engine.stream(prompt, SamplingParams(LONG, drafts=2))
            threading.Timer(seconds, stream.abort).start()
            list(stream)
            held = engine.cached
            assert drafts(engine) <= max(0, len(held) - 1)
            reused += check(engine, fresh, [*held, 5, 6], 10).stats.cached_tokens
    assert reused > 100


def test_a_turn_that_branches_off_keeps_what_is_common(engine: tilecompile.Engine, fresh: tilecompile.Engine) -> None:
    """The row at the last common position depends on the id after it."""
    engine.generate([1, 2, 3, 4, 5, 6], SamplingParams(9, drafts=2))
    assert check(engine, fresh, [1, 2, 3, 9, 9], 9).stats.cached_tokens == 2


def test_a_snapshot_has_the_rows_of_the_mtp_layer(
    tiny: Path, engine: tilecompile.Engine, fresh: tilecompile.Engine, tmp_path: Path
) -> None:
    out = engine.generate(PROMPT, SamplingParams(30, drafts=2))
    held, count = engine.cached, drafts(engine)
    want = rows(engine, count)
    engine.save_cache(tmp_path / "a.cache")
    with tilecompile.load(tiny, threads=1) as other:
        fill_caches(other)
        other.load_cache(tmp_path / "a.cache")
        assert (other.cached, drafts(other)) == (held, count)
        assert rows(other, count) == want
        turn = [*held, out.tokens[-1], 5, 6]
        assert check(other, fresh, turn, 20).stats.cached_tokens == min(len(held) - 1, count)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_acceptance_in_a_second_turn_is_that_of_a_fresh_run(tmp_path: Path) -> None:
    """On the trained checkpoint, whose drafts are good."""
    compile_model(CompileOptions(str(ROOT / "examples" / "tiny-glm5"), tmp_path / "engine"))
    with tilecompile.load(tmp_path / "engine") as engine, tilecompile.load(tmp_path / "engine") as fresh:
        assert engine.text is not None
        text = engine.text.encode("In the beginning God created the heaven and the earth.")
        lengths = []
        for _ in range(6):
            out = check(engine, fresh, text, 40)
            lengths.append(out.stats.accepted_length)
            text = [*text, *out.tokens, *engine.text.encode(" And the LORD said")]
        assert np.mean(lengths) > 1.5
