"""Conversations: what becomes a message, and that prompts go on with the ids that the engine has seen."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tilecompile
from support import fake_engine as fake
from support.paths import TINY_CHECKPOINT
from tilecompile.errors import InputError
from tilecompile.runtime.conversation import Conversation, _Seen
from tilecompile.runtime.sampling import SamplingParams
from tilecompile.runtime.text import Text

SIX = SamplingParams(max_new_tokens=6)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tilecompile.Engine]:
    path = fake.make_engine(tmp_path_factory.mktemp("fake") / "engine", chat=fake.TEMPLATE)
    with tilecompile.load(path) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    path = tmp_path_factory.mktemp("text") / "tokenizer.json"
    fake.tokenizer().save(str(path))
    return Text(path)


@settings(max_examples=300, deadline=None)
@given(
    st.text("aé😀", max_size=6),
    st.lists(st.sampled_from([*b"ab", *"é😀".encode(), 257 + 0x29, fake.EOS]), max_size=8),
    st.integers(0, 8),
    st.text("aé<|end|>", max_size=6),
)
def test_a_continued_text_keeps_the_ids_that_its_begin_was_made_of(
    text: Text, before: str, answer: list[int], kept: int, more: str
) -> None:
    ids = text.encode(before, special=False)
    said = b"".join(text.token_bytes(token, special=True) for token in answer[:kept])
    shown = before + said.decode(errors="ignore") + more
    out = text.continued(shown, before, ids, answer)
    assert b"".join(text.token_bytes(token, special=True) for token in out) == shown.encode()
    assert out[: len(ids)] == ids
    whole = said.decode(errors="replace")
    if "\ufffd" not in whole:  # what was said is in it, as it was said
        assert out[: len(ids) + len(answer[:kept])] == [*ids, *answer[:kept]]


@settings(max_examples=300, deadline=None)
@given(st.text("a e.", max_size=6), st.lists(st.integers(0, 1023), max_size=8), st.text("a e.é", max_size=6))
def test_any_ids_of_a_trained_tokenizer_are_kept(before: str, answer: list[int], more: str) -> None:
    text = tiny_text()
    said = b"".join(text.token_bytes(token, special=True) for token in answer)
    ids = text.encode(before, special=False)
    shown = before + said.decode(errors="ignore") + more
    out = text.continued(shown, before, ids, answer)
    assert b"".join(text.token_bytes(token, special=True) for token in out) == shown.encode()
    if answer and said.decode(errors="ignore").encode() == said:
        assert out[: len(ids) + len(answer)] == [*ids, *answer]


@cache
def tiny_text() -> Text:
    return Text(TINY_CHECKPOINT / "tokenizer.json")


def test_a_text_that_does_not_begin_as_before_is_encoded_anew(text: Text) -> None:
    two_bytes, one_token = [*"é".encode()], 257 + 0x29
    assert text.continued("aéb", "a", [97], two_bytes) == [97, *two_bytes, 98]
    assert text.continued("xéb", "a", [97], two_bytes) == [120, one_token, 98]
    assert text.continued("aéb", "a", [97], [*b"x"]) == [97, one_token, 98]
    with pytest.raises(InputError, match="the text is not valid Unicode"):
        text.continued("a\udc80", "a", [97], [98])


def test_question_and_answer_become_messages(engine: tilecompile.Engine) -> None:
    chat = Conversation(engine, x="y")
    first = engine.chat([{"role": "user", "content": "a"}], SIX, x="y")
    assert "".join(chat.say("a", SIX)) == first.text
    assert chat.messages == [{"role": "user", "content": "a"}, {"role": "assistant", "content": first.text}]
    assert chat.stats is not None
    assert chat.stats.tokens == 6


def test_the_next_prompt_goes_on_with_the_ids_of_prompt_and_answer(tmp_path: Path) -> None:
    path = fake.make_engine(tmp_path / "e", chat="{% for m in messages %}{{ m.content }}{% endfor %}")
    with tilecompile.load(path) as engine:
        chat = Conversation(engine)
        chat._seen = _Seen("k", [107], [*"é".encode()])  # the tokenizer has one token for these two
        chat.messages = [{"role": "user", "content": "k"}, {"role": "assistant", "content": "é"}]
        later = [*chat.messages, {"role": "user", "content": "1"}]
        assert chat.prompt(later)[1] == [107, *"é".encode(), *b"1"]
        assert engine.chat_prompt(later) == [107, 257 + 0x29, *b"1"]
        assert "".join(chat.say("1", SamplingParams(max_new_tokens=2))) == "3A"
        assert chat.prompt([*chat.messages, {"role": "user", "content": "b"}])[1] == [107, *"é13Ab".encode()]
        changed = [{"role": "user", "content": "K"}, *later[1:]]
        assert chat.prompt(changed)[1] == engine.chat_prompt(changed)


def test_the_next_turn_computes_its_new_tokens_only(tmp_path: Path) -> None:
    path = fake.make_engine(tmp_path / "e", chat="{% for m in messages %}{{ m.content }}{% endfor %}")
    with tilecompile.load(path) as engine:
        chat = Conversation(engine)
        for _ in chat.say("1", SamplingParams(max_new_tokens=2)):
            pass
        for _ in chat.say("bc1", SamplingParams(max_new_tokens=2)):
            pass
        assert chat.stats is not None
        assert chat.stats.prompt_tokens == len("13Abc1")
        assert chat.stats.cached_tokens == len("13")  # the last token of an answer is sampled, and not fed
        assert [m["content"] for m in chat.messages] == ["1", "3A", "bc1", "3A"]


def test_an_answer_that_is_given_up_is_kept_as_far_as_it_was_said(engine: tilecompile.Engine) -> None:
    chat = Conversation(engine)
    pieces = chat.say("a", SIX)
    said = next(pieces) + next(pieces)
    pieces.close()
    assert chat.messages[-1] == {"role": "assistant", "content": said}
    assert chat.stats is not None
    assert chat.stats.finish in ("aborted", "length")
    assert "".join(chat.say("b", SIX))  # the engine is free
    assert [m["role"] for m in chat.messages] == ["user", "assistant"] * 2


def test_a_refused_message_is_no_message(engine: tilecompile.Engine) -> None:
    chat = Conversation(engine)
    with pytest.raises(InputError, match="the engine's max_seq_len is 64"):
        next(chat.say("a" * 100))
    assert chat.messages == []
    assert "".join(chat.say("b", SIX))


def test_the_system_message_is_first_and_outlives_clearing(engine: tilecompile.Engine) -> None:
    chat = Conversation(engine)
    assert chat.system is None
    for _ in chat.say("a", SIX):
        pass
    chat.system = "s"
    chat.system = "t"
    assert [m["role"] for m in chat.messages] == ["system", "user", "assistant"]
    assert chat.system == "t"
    chat.clear()
    assert chat.messages == [{"role": "system", "content": "t"}]
    chat.system = None
    chat.clear()
    assert chat.messages == []
