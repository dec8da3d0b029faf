"""Selections of one engine, replayed in it and in one of another placement and other number types."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilecompile
from support.engines import Built
from tilecompile.compile import compile_model
from tilecompile.errors import EngineError, InputError
from tilecompile.options import CompileOptions
from tilecompile.runtime.replay.choices import check_shards, choices
from tilecompile.runtime.replay.replay import replayed
from tilecompile.runtime.replay.selections import Selections

TOPK, EXPERTS, A_TOKEN, LAYERS = 24, 16, 4, (0, 1, 2)
SPARSE = LAYERS[1:]

ERROR = 0.05
"""Largest error of a logit, in RMS of the logits: 16-bit weights and caches, three layers, the same choices."""


@pytest.fixture(scope="module")
def plain(built: Callable[[str], Built]) -> Iterator[tuple[tilecompile.Engine, list[int]]]:
    """An f32 engine on one device, and a text longer than what attention selects."""
    found = built("plain")
    with tilecompile.load(found.path) as engine:
        yield engine, found.ids


@pytest.fixture(scope="module")
def other(built: Callable[[str], Built]) -> Iterator[tilecompile.Engine]:
    """An engine of the same model in 16 bits, on two devices that have every other block of the context."""
    path = built("plain").path
    options = CompileOptions(
        str(path.parent / "model"),
        path.parent / "other",
        max_seq_len=128,
        devices=2,
        workers=2,
        placement="even",
        weights="bf16",
        cache="bf16",
        target="cpu-portable",
    )
    compile_model(options)
    with tilecompile.load(options.output) as engine:
        yield engine


@pytest.fixture(scope="module")
def chosen(plain: tuple[tilecompile.Engine, list[int]]) -> Selections:
    """What the f32 engine selects on its text."""
    engine, ids = plain
    return engine.selections(ids)


def test_selections_are_what_a_step_can_see(plain: tuple[tilecompile.Engine, list[int]], chosen: Selections) -> None:
    ids = plain[1]
    assert set(chosen.positions) == set(LAYERS)
    assert set(chosen.experts) == set(chosen.weights) == set(SPARSE)
    for table in chosen.positions.values():
        assert table.shape == (len(ids), TOPK)
        assert table.dtype == np.int32
        for position, row in enumerate(table):
            used = min(TOPK, position + 1)
            assert (row[used:] == -1).all()
            assert (np.diff(row[:used]) > 0).all()
            assert row[0] >= 0
            assert row[used - 1] <= position
    assert any((table[-1] != np.arange(len(ids) - TOPK, len(ids))).any() for table in chosen.positions.values())
    for layer in SPARSE:
        assert chosen.experts[layer].shape == (len(ids), A_TOKEN)
        assert all(len(set(row)) == A_TOKEN for row in chosen.experts[layer].tolist())
        np.testing.assert_allclose(chosen.weights[layer].sum(1), 2.5, rtol=1e-5)


def test_own_selections_give_the_same_bits(
    plain: tuple[tilecompile.Engine, list[int]], other: tilecompile.Engine
) -> None:
    ids = plain[1]
    for engine in (plain[0], other):
        own = engine.selections(ids)
        want = engine.score(ids)
        np.testing.assert_array_equal(engine.score(ids, selections=own), want)
        np.testing.assert_array_equal(engine.score(ids), want)  # nothing of the replay stays


def test_replay_leaves_numerical_error_only(
    plain: tuple[tilecompile.Engine, list[int]], other: tilecompile.Engine, chosen: Selections
) -> None:
    engine, ids = plain
    want, own = engine.score(ids), other.selections(ids)
    scale = np.sqrt((want**2).mean())
    differs = np.any([(own.positions[layer] != chosen.positions[layer]).any(1) for layer in LAYERS], axis=0)
    differs |= np.any(
        [(np.sort(own.experts[layer]) != np.sort(chosen.experts[layer])).any(1) for layer in SPARSE], axis=0
    )
    assert differs.any()
    free = np.abs(other.score(ids) - want).max(1) / scale
    same = np.abs(other.score(ids, selections=chosen) - want).max(1) / scale
    print(f"differing at {differs.sum()} of {len(ids)} positions; error {free.max():.3f}, replayed {same.max():.3f}")
    assert same.max() < ERROR < free.max()


def test_logits_follow_the_selections_that_are_replayed(
    plain: tuple[tilecompile.Engine, list[int]], chosen: Selections
) -> None:
    """Other positions, experts or weights give other logits, from the row on where they differ."""
    engine, ids = plain
    want = engine.score(ids)
    row = len(ids) - 5

    def first_change(**changed: Any) -> int:
        got = engine.score(ids, selections=replace(chosen, **changed))
        return int((got != want).any(1).argmax())

    positions = {layer: table.copy() for layer, table in chosen.positions.items()}
    positions[0][row] = np.arange(TOPK)
    assert first_change(positions=positions) == row
    experts = {layer: table.copy() for layer, table in chosen.experts.items()}
    experts[2][row] = sorted(set(range(EXPERTS)) - set(experts[2][row].tolist()))[:A_TOKEN]
    assert first_change(experts=experts) == row
    weights = {layer: table.copy() for layer, table in chosen.weights.items()}
    weights[1][row] *= 0.5
    assert first_change(weights=weights) == row


def test_selections_of_a_text_in_pieces_are_those_of_the_whole(
    plain: tuple[tilecompile.Engine, list[int]], chosen: Selections, tmp_path: Path
) -> None:
    engine, ids = plain
    want, half = engine.score(ids), len(ids) // 2
    engine.score(ids[:half])
    later = engine.selections(ids[half:], half)
    assert later.start == half
    for layer in LAYERS:
        np.testing.assert_array_equal(later.positions[layer], chosen.positions[layer][half:])
    later.save(tmp_path / "later.npz")
    engine.score(ids[:half])
    np.testing.assert_array_equal(engine.score(ids[half:], half, Selections.load(tmp_path / "later.npz")), want[half:])
    with pytest.raises(InputError, match=f"selections begin at position {half}, start is 0$"):
        engine.score(ids[half:], selections=later)


def changed(chosen: Selections, field: str, layer: int, change: Callable[[np.ndarray], np.ndarray]) -> Selections:
    tables = dict(getattr(chosen, field))
    tables[layer] = change(tables[layer].copy())
    return replace(chosen, **{field: tables})


def put(row: int, column: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(table: np.ndarray) -> np.ndarray:
        table[row, column] = value
        return table

    return change


WRONG: dict[str, tuple[Callable[[Selections], Selections], str]] = {
    "a layer less": (
        lambda s: replace(s, experts={1: s.experts[1]}),
        "selections have experts of layers 1, the engine chooses them in layers 1, 2",
    ),
    "weights of another layer": (
        lambda s: replace(s, weights={1: s.weights[1]}),
        "selections have weights of other layers than experts",
    ),
    "narrower": (
        lambda s: changed(s, "positions", 1, lambda t: t[:, :-1]),
        r"selections.positions\[1\] is int32 \[72, 23\], want whole numbers \[72, 24\]",
    ),
    "shorter": (
        lambda s: changed(s, "experts", 2, lambda t: t[1:]),
        r"selections.experts\[2\] is int32 \[71, 4\], want whole numbers \[72, 4\]",
    ),
    "another type": (
        lambda s: changed(s, "weights", 2, lambda t: t.astype(np.int32)),
        r"selections.weights\[2\] is int32 \[72, 4\], want f32 \[72, 4\]",
    ),
    "a later position": (
        lambda s: changed(s, "positions", 0, put(30, -1, 31)),
        r"selections.positions\[0\] at row 30 is not a selection of 24 of the 31 positions that it sees",
    ),
    "a gap": (
        lambda s: changed(s, "positions", 0, put(3, 1, -1)),
        r"selections.positions\[0\] at row 3 is not a selection of 4 of the 4 positions that it sees",
    ),
    "no such expert": (
        lambda s: changed(s, "experts", 1, put(7, 0, EXPERTS)),
        r"selections.experts\[1\] at row 7 is \[16, .*\], want different ones from 0 to 15",
    ),
    "not a number": (
        lambda s: changed(s, "weights", 1, put(7, 0, np.nan)),
        r"selections.weights\[1\] has a number that isn't finite",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_selections_are_refused(
    name: str, plain: tuple[tilecompile.Engine, list[int]], chosen: Selections
) -> None:
    change, message = WRONG[name]
    engine, ids = plain
    with pytest.raises(InputError, match=f"^{message}") as caught:
        engine.score(ids, selections=change(chosen))
    assert "\n" not in str(caught.value)


def test_files_that_hold_no_selections_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for content, message in (
        (None, "No such file"),
        (b"nothing", "is no file of selections"),
        ({"positions.1": np.zeros((1, 2))}, "selections have no start"),
        ({"start": np.array(0), "tokens.1": np.zeros(2)}, "selections have 'tokens.1'"),
    ):
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            np.savez(path, **content)
        with pytest.raises(InputError, match=message) as caught:
            Selections.load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_incomplete_shards_and_unread_choices_are_errors(other: tilecompile.Engine) -> None:
    """Shards that don't make up the context, and choices that nothing reads, are EngineErrors."""
    manifest, tables = other.manifest, other.tables
    found = choices(manifest, tables)
    shards = {choice.shard for choice in found if choice.shard is not None}
    assert sorted(shard[:2] for shard in shards) == [(0, 2), (1, 2)]
    with pytest.raises(EngineError, match=r"layer 0 selects positions on shards \[\(1, 2, .*don't make up all of it"):
        check_shards(manifest, [choice for choice in found if choice.shard != min(shards)])
    unread = {**tables, "operands": tables["operands"].copy()}
    buffer = found[0].buffers[0]
    unread["operands"]["buffer"][unread["operands"]["buffer"] == buffer] = (buffer + 1) % len(tables["buffers"])
    with pytest.raises(EngineError, match=r"no operator reads what .* selects"):
        replayed(manifest, unread, found)
    without = replace(manifest, data={**manifest.data, "files": {}})
    with pytest.raises(EngineError, match="missing file; compile the model again"):
        choices(without, tables)
