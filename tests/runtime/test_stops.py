"""Stop strings: what is shown, however the text is divided, against a search of the whole text."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import tilecompile
from support import fake_engine as fake
from tilecompile.errors import InputError
from tilecompile.runtime.sampling import SamplingParams
from tilecompile.runtime.stops import ShownText, StopStrings
from tilecompile.runtime.text import Text

# Two letters and a character of two bytes, so that matches and near matches are frequent.
TEXT = st.text("abé", max_size=24)
STOPS = st.lists(st.text("abé", min_size=1, max_size=4), max_size=3)


def first_stop(text: str, stops: list[str]) -> tuple[int, int] | None:
    """Begin and end of the stop string that is complete first, the longest of those; by trying every end."""
    for end in range(len(text) + 1):
        matched = [stop for stop in stops if text[:end].endswith(stop)]
        if matched:
            return end - max(map(len, matched)), end
    return None


def expected(text: str, stops: list[str], include: bool) -> str:
    found = first_stop(text, stops)
    return text if found is None else text[: found[1 if include else 0]]


def divided(text: str, cuts: list[int]) -> list[str]:
    """The text cut at the given places, taken modulo its length."""
    places = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(places)]


@settings(max_examples=500, deadline=None)
@given(TEXT, STOPS, st.lists(st.integers(0, 99)), st.booleans())
@example("abab", ["abb", "ba"], [1, 2, 3], False)
def test_shown_text_ends_at_the_first_stop_string_wherever_the_text_is_divided(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    watch = StopStrings(stops, include)
    shown = "".join(watch.push(piece) for piece in divided(text, cuts)) + watch.finish()
    assert shown == expected(text, stops, include)
    found = first_stop(text, stops)
    assert watch.matched == (None if found is None else text[slice(*found)])


@settings(max_examples=500, deadline=None)
@given(TEXT, STOPS, st.lists(st.integers(0, 99)), TEXT)
def test_nothing_is_shown_that_may_become_a_stop_string(
    text: str, stops: list[str], cuts: list[int], later: str
) -> None:
    watch = StopStrings(stops)
    shown = "".join(watch.push(piece) for piece in divided(text, cuts))
    if watch.matched is None:  # whatever comes later
        assert expected(text + later, stops, include=False).startswith(shown)
        # and no more is held back than must be: some later text completes a stop string that begins where showing ended
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_the_stop_string_that_ends_first_counts_and_of_those_the_longest() -> None:
    for stops, shown, matched in ((["abcd", "bc"], "xa", "bc"), (["c", "abc", "bc"], "x", "abc")):
        watch = StopStrings(stops)
        assert watch.push("xabcd") + watch.finish() == shown
        assert watch.matched == matched
        assert watch.push("more") == ""


def test_without_stop_strings_nothing_is_held_back() -> None:
    watch = StopStrings(())
    assert (watch.push("ab"), watch.finish(), watch.matched) == ("ab", "", None)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    path = tmp_path_factory.mktemp("text") / "tokenizer.json"
    fake.tokenizer().save(str(path))
    return Text(path)


def shown(text: Text, ids: list[int], stops: list[str], include: bool = False, min_tokens: int = 0) -> tuple[str, int]:
    """What is shown of a stream of tokens, and how many of them count."""
    params = SamplingParams(stop=stops, include_stop=include, min_tokens=min_tokens)  # type: ignore[arg-type]
    pieces = ShownText(text.pieces(), params)
    out, count = "", 0
    while count < len(ids) and pieces.matched is None:
        out += pieces.push(ids[count])
        count += 1
    return out + pieces.finish(), count


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*b"ab", *"é😀".encode(), 0xC3, fake.EOS, 257 + 0x29])), STOPS, st.booleans())
def test_tokens_that_end_inside_characters_show_the_same_text_and_no_more_tokens_than_needed(
    text: Text, ids: list[int], stops: list[str], include: bool
) -> None:
    whole, count = shown(text, ids, stops, include)
    assert whole == expected(text.decode(ids), stops, include)
    ended = count < len(ids)
    if ended:  # the last token that counts completed it
        assert first_stop(text.decode(ids[:count]), stops) is not None
    before = text.pieces()
    until = "".join(before.push(token) for token in ids[: count - 1])
    assert first_stop(until, stops) is None


def test_a_stop_string_in_the_middle_of_a_token_ends_the_text(text: Text) -> None:
    token = 257 + 0x29  # the two bytes of é as one token
    assert text.decode([token]) == "é"
    assert shown(text, [*b"xa", token, *b"y"], ["aé"]) == ("x", 3)
    assert shown(text, [*b"xa", token, *b"y"], ["aé"], include=True) == ("xaé", 3)


def test_the_first_tokens_are_shown_whatever_is_in_them(text: Text) -> None:
    assert shown(text, [*b"abab"], ["a"], min_tokens=0) == ("", 1)
    assert shown(text, [*b"abab"], ["a"], min_tokens=1) == ("ab", 3)
    assert shown(text, [*b"abab"], ["ba"], min_tokens=2) == ("abab", 4)


# In a request


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tilecompile.Engine]:
    with tilecompile.load(fake.make_engine(tmp_path_factory.mktemp("fake") / "engine")) as loaded:
        yield loaded


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 255), st.integers(0, 40), st.integers(1, 3), st.booleans())
def test_a_request_ends_where_a_stop_string_is_complete_and_streams_the_same_text(
    engine: tilecompile.Engine, first: int, at: int, length: int, include: bool
) -> None:
    assume(299 not in [first, *fake.greedy([first], 12)])  # at which the stand-in stalls
    whole = engine.generate([first], SamplingParams(max_new_tokens=12))
    assert whole.text is not None
    stop = whole.text[at % max(1, len(whole.text)) :][:length]
    assume(stop)
    params = SamplingParams(max_new_tokens=12, stop=(stop, "never"), include_stop=include)
    out = engine.generate([first], params)
    assert out.text == expected(whole.text, [stop], include)
    assert out.tokens == whole.tokens[: len(out.tokens)]
    assert out.stats.tokens == len(out.tokens)
    assert out.stats.finish in ("stop", whole.stats.finish)  # what is complete only at the end ends nothing
    assert "\ufffd" in stop or stop not in engine_text(engine, out.tokens[:-1])  # no token more than needed
    with engine.stream([first], params) as stream:
        pieces = [stream.piece for _ in stream]
    assert "".join(pieces) + stream.piece == out.text
    assert stream.stats is not None
    assert (stream.stats.tokens, stream.stats.finish) == (out.stats.tokens, out.stats.finish)


def engine_text(engine: tilecompile.Engine, tokens: list[int]) -> str:
    assert engine.text is not None
    return engine.text.decode(tokens)


def test_a_stopped_request_leaves_the_engine_free_at_once(engine: tilecompile.Engine) -> None:
    params = SamplingParams(max_new_tokens=None, stop=("A",))
    stream = engine.stream([49], params)
    assert [next(stream), next(stream)] == [51, 65]
    assert stream.piece == ""
    assert engine.generate([49], params).text == "3"  # before the stream's end was asked for
    assert list(stream) == []


def test_an_asyncio_request_ends_at_a_stop_string_too(engine: tilecompile.Engine) -> None:
    out = asyncio.run(engine.agenerate([49], SamplingParams(max_new_tokens=None, stop=("A",))))
    assert (out.text, out.tokens, out.stats.finish) == ("3", [51, 65], "stop")


def test_stop_strings_need_a_tokenizer(tmp_path: Path) -> None:
    with (
        tilecompile.load(fake.make_engine(tmp_path / "e", text=False)) as engine,
        pytest.raises(InputError, match="the engine has no tokenizer, so it can't stop at texts"),
    ):
        engine.generate([1], SamplingParams(stop=("a",)))
