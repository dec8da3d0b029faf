"""Text of tokens as they come, of several tokenizers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import fake_engine as fake
from tilecompile.errors import EngineError
from tilecompile.runtime.text import Text


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    path = tmp_path_factory.mktemp("text") / "tokenizer.json"
    fake.tokenizer().save(str(path))
    return Text(path)


def check_pieces(text: Text, ids: list[int]) -> list[str]:
    pieces = text.pieces()
    out = [pieces.push(token) for token in ids]
    out.append(pieces.finish())
    assert "".join(out) == text.decode(ids)
    return out


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_streamed_text_has_no_broken_characters(text: Text, string: str) -> None:
    pieces = check_pieces(text, text.encode(string))
    assert "".join(pieces) == string
    assert "\ufffd" in string or not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, fake.VOCAB - 1)))
def test_streamed_text_of_any_ids_is_the_decoded_text(text: Text, ids: list[int]) -> None:
    check_pieces(text, ids)


def test_streamed_text_holds_back_incomplete_characters(text: Text) -> None:
    assert check_pieces(text, list("a😀b".encode())) == ["a", "", "", "", "😀", "b", ""]
    assert check_pieces(text, list("😀".encode()[:3])) == ["", "", "", "\ufffd"]
    assert check_pieces(text, [fake.EOS, 97, 10**6]) == ["", "a", "", ""]


def test_streamed_text_of_other_tokenizers(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {"\u2581In": 0, "\u2581the": 1, "\u2581beginning": 2, "<unk>": 3}
    tokenizer = Tokenizer(models.WordLevel(words, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = Text(tmp_path / "tokenizer.json")
    assert check_pieces(text, text.encode("In the beginning the")) == ["In", " the", " beginning", " the", ""]


def test_text_refuses_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EngineError, match="is not a readable tokenizer"):
        Text(tmp_path / "tokenizer.json")
