"""Snapshots of caches: the same bits in another process, only valid positions, and no other file is taken for one."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilecompile
from support import damage
from support.engines import tiny_model
from support.using import feeding, left
from tilecompile import SamplingParams
from tilecompile.compile import compile_model
from tilecompile.errors import EngineBusy, EngineError, InputError
from tilecompile.measure.steps import fill_caches
from tilecompile.options import CompileOptions
from tilecompile.runtime.folder.caches import CacheBuffer, cache_buffers
from tilecompile.runtime.snapshot import HEAD

IDS = [3, 17, 25, 9, 44, 12, 8, 8, 77, 30, 31, 5, 6]
MORE = [7, 8, 9]


@pytest.fixture(scope="module")
def by_context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine whose caches are divided over three devices by blocks of the context."""
    folder = tmp_path_factory.mktemp("context")
    options = CompileOptions(
        str(tiny_model(folder / "model")),
        *(folder / "engine",),
        seed=1,
        devices=3,
        workers=1,
        max_seq_len=64,
        target="cpu-portable",
        placement="even",
    )
    compile_model(options)
    return folder / "engine"


@pytest.fixture(params=["tiny", "by_context"])
def path(request: pytest.FixtureRequest) -> Path:
    """An engine with undivided caches, and one with divided caches."""
    found: Path = request.getfixturevalue(request.param)
    return found


def test_caches_are_divided_by_context(by_context: Path) -> None:
    with tilecompile.load(by_context) as engine:
        assert {c.shard[1] for c in cache_buffers(engine.manifest, engine.tables)} >= {3}


@pytest.mark.parametrize("count", [1, 2, 12, 13])
def test_a_later_process_goes_on_with_the_same_bits(path: Path, tmp_path: Path, count: int) -> None:
    file = tmp_path / "a.cache"
    with tilecompile.load(path, threads=2) as engine:
        want = engine.score(IDS[:count] + MORE)[count:]
        engine.reset()
        tokens = engine.generate(IDS[:count] + MORE, 5).tokens
        engine.reset()
        engine.generate(IDS[:count], 1)
        assert engine.save_cache(file) == count
    assert left(tmp_path) == ["a.cache"]
    with tilecompile.load(path, threads=1) as engine:
        fill_caches(engine)  # what isn't loaded is wrong
        assert engine.load_cache(file) == count
        assert engine.cached == IDS[:count]
        out = engine.generate(IDS[:count] + MORE, tilecompile.SamplingParams(5, drafts=0))
        assert (out.tokens, out.stats.cached_tokens) == (tokens, count)
        assert out.stats.steps == feeding(engine, len(MORE)) + 4
        engine.load_cache(file)
        np.testing.assert_array_equal(engine.score(MORE, start=count), want)


def test_a_conversation_goes_back_to_where_it_was_saved(engine: tilecompile.Engine, tmp_path: Path) -> None:
    params = SamplingParams(10, drafts=0)
    first = engine.generate(IDS, params)
    turn = [*IDS, *first.tokens, 5]
    engine.save_cache(tmp_path / "a.cache")
    want = engine.generate(turn, params).tokens
    engine.generate([1, 2, 3], params)
    engine.load_cache(tmp_path / "a.cache")
    out = engine.generate(turn, params)
    assert out.tokens == want
    assert out.stats.cached_tokens == len(turn) - 2


def test_a_snapshot_has_the_valid_positions_only(path: Path, tmp_path: Path) -> None:
    with tilecompile.load(path) as engine:
        engine.score(IDS)
        engine.save_cache(tmp_path / "a.cache")
        buffers = engine.tables["buffers"]
        caches = cache_buffers(engine.manifest, engine.tables)
        assert len(caches) == (buffers["arena"] == 1).sum()
        first = {c.shard for c in caches if not c.drafts}
        assert all(sum(replace(c, shard=s).bytes_of(len(IDS)) for s in first) == len(IDS) * c.row_bytes for c in caches)
        rows = 4 * len(IDS) + sum(c.bytes_of(len(IDS)) for c in caches if not c.drafts)
    data = (tmp_path / "a.cache").read_bytes()
    assert HEAD.unpack(data[: HEAD.size])[3] == HEAD.size + rows


@pytest.mark.parametrize("shard", [(0, 1, 1), (0, 2, 1), (1, 2, 3), (2, 3, 2)])
def test_the_bytes_of_a_shard_are_those_of_its_positions(shard: tuple[int, int, int]) -> None:
    index, count, block = shard
    cache = CacheBuffer(0, 0, 10, shard, False)
    for positions in range(40):
        assert cache.bytes_of(positions) == 10 * sum(p // block % count == index for p in range(positions))


# What is refused


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> Iterator[tilecompile.Engine]:
    with tilecompile.load(tiny) as engine:
        yield engine


@pytest.fixture(scope="module")
def saved(loaded: tilecompile.Engine, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The content of a snapshot of IDS."""
    path = tmp_path_factory.mktemp("saved") / "a.cache"
    loaded.score(IDS)
    loaded.save_cache(path)
    return path.read_bytes()


def refused(engine: tilecompile.Engine, path: Path, words: str = "") -> None:
    """Loading is refused in one line that names the file, and changes nothing."""
    engine.score(IDS[:5])
    before = [engine.contents(i).tobytes() for i in np.flatnonzero(engine.tables["buffers"]["arena"] == 1)]
    with pytest.raises(InputError) as error:
        engine.load_cache(path)
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert engine.cached == IDS[:5]
    assert before == [engine.contents(i).tobytes() for i in np.flatnonzero(engine.tables["buffers"]["arena"] == 1)]


def test_damaged_snapshots_are_refused(loaded: tilecompile.Engine, saved: bytes, tmp_path: Path) -> None:
    path, rng = tmp_path / "a.cache", random.Random(0)
    _, _, size, offset, _ = HEAD.unpack(saved[: HEAD.size])
    at = [*range(0, HEAD.size, 3), HEAD.size, offset - 1, offset, offset + size - 1]
    for i in [*at, *(rng.randrange(len(saved)) for _ in range(60))]:
        path.write_bytes(saved[:i] + bytes([saved[i] ^ (1 << rng.randrange(8))]) + saved[i + 1 :])
        refused(loaded, path)
    for length in (0, 1, HEAD.size - 1, HEAD.size, offset - 1, offset, len(saved) - 1):
        path.write_bytes(saved[:length])
        refused(loaded, path)
    path.write_bytes(saved + b"\0")
    refused(loaded, path, "is damaged: it has")
    path.write_bytes(saved)
    assert loaded.load_cache(path) == len(IDS)


def rewritten(saved: bytes, change: Callable[[dict[str, Any], bytearray], None]) -> bytes:
    """A snapshot with another description and body, with hashes that fit."""
    magic, version, size, offset, _ = HEAD.unpack(saved[: HEAD.size])
    about, body = json.loads(saved[offset : offset + size]), bytearray(saved[HEAD.size : offset])
    change(about, body)
    text = json.dumps(about).encode()
    head = HEAD.pack(magic, version, len(text), HEAD.size + len(body), hashlib.sha256(text).digest())
    return head + bytes(body) + text


def more_ids(about: dict[str, Any], body: bytearray) -> None:
    body[0:0] = bytes(4 * 20_000)
    about["ids"] += 20_000


def wrong_id(about: dict[str, Any], body: bytearray) -> None:
    body[:4] = struct.pack("<i", 300)
    about["sha256"] = hashlib.sha256(body[: 4 * len(IDS)]).hexdigest()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda about, body: about.update(engine="0" * 64), "is a snapshot of another engine than"),
        (lambda about, body: about.pop("ids"), "missing key ids"),
        (lambda about, body: about.update(more=1), 'unknown key ["more"]'),
        (lambda about, body: about.update(ids=-1), '["ids"] is -1'),
        (lambda about, body: about.update(ids=1), "offset of the description"),
        (lambda about, body: about.update(drafts=len(IDS)), "has drafts at 13 positions, want less than 13"),
        (lambda about, body: about.update(drafts=2), "devices and bytes of its caches"),
        (lambda about, body: about["caches"].pop(), "devices and bytes of its caches"),
        (lambda about, body: about["caches"][0].update(device=1), "devices and bytes of its caches"),
        (more_ids, "has 20013 ids, want 1 to 16384"),
        (wrong_id, "has ids from 5 to 300, want 0 to 299"),
    ],
)
def test_snapshots_that_no_engine_wrote_are_refused(
    loaded: tilecompile.Engine, saved: bytes, tmp_path: Path, change: Any, words: str
) -> None:
    path = tmp_path / "a.cache"
    path.write_bytes(rewritten(saved, change))
    refused(loaded, path, words)


def test_snapshots_of_another_engine_are_refused(
    tiny: Path, loaded: tilecompile.Engine, saved: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "a.cache"
    path.write_bytes(saved)
    moved = tmp_path / "moved"
    shutil.copytree(tiny, moved)
    with tilecompile.load(moved) as engine:
        assert engine.load_cache(path) == len(IDS), "its name is of no importance"
    other = damage.copy(tiny, tmp_path / "other")
    weights = other / "weights" / "device0.bin"
    damage.put(weights, weights.read_bytes()[:-1] + b"\1")
    damage.rehash(other, "weights/device0.bin")
    with tilecompile.load(other) as engine:
        refused(engine, path, "is a snapshot of another engine than")


def test_paths_that_are_no_snapshots_are_refused(loaded: tilecompile.Engine, saved: bytes, tmp_path: Path) -> None:
    refused(loaded, tmp_path / "none", "can't be read: No such file or directory")
    refused(loaded, tmp_path, "can't be read: Is a directory")
    path = tmp_path / "a.cache"
    path.write_text("a text" * 100)
    refused(loaded, path, "is not a snapshot of caches")
    path.write_bytes(saved[:16] + struct.pack("<I", 2) + saved[20:])
    refused(loaded, path, "the snapshot's version is 2, want 1")


def test_what_can_not_be_saved_is_refused(
    engine: tilecompile.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.cache"
    with pytest.raises(InputError, match="there is nothing to save"):
        engine.save_cache(path)
    engine.score(IDS)
    for wrong in (tmp_path / "none" / "a.cache", tmp_path):
        with pytest.raises(InputError, match=f"^{wrong}: can't be written: "):
            engine.save_cache(wrong)
    with engine.stream([1], None) as stream:
        next(stream)
        for call in (engine.save_cache, engine.load_cache):
            with pytest.raises(EngineBusy):
                call(path)
    assert left(tmp_path) == []
    engine.score(IDS)
    engine.save_cache(path)
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise EngineError("memory is gone")

    monkeypatch.setattr(engine.backend, "read", fail)
    with pytest.raises(EngineError, match="memory is gone"):
        engine.save_cache(path)
    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match=r"a\.cache: can't be written: No space left on device"):
        engine.save_cache(path)
    assert (left(tmp_path), path.read_bytes()) == (["a.cache"], before)
