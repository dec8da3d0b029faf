"""Text to token ids and back, also piece by piece as tokens arrive, without broken characters."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tilecompile.runtime.errors import EngineError, InputError


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes bytes as: printable ones as themselves, the others from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(rest)}


def _utf8(text: str) -> bytes:
    """The text's bytes. InputError if it has none, as text with half of a surrogate pair."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the text is not valid Unicode: {error.reason} at character {error.start}") from error


class Text:
    """The engine's tokenizer. Special tokens (such as end of text) are left out of decoded text."""

    def __init__(self, path: Path, content: bytes | None = None) -> None:
        """Reads a tokenizer.json, or takes its content as read before."""
        from tokenizers import Tokenizer

        try:
            self._tokenizer: Any = Tokenizer.from_buffer(path.read_bytes() if content is None else content)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises bare Exception, and panics that aren't even that
            raise EngineError(
                f"{path}: is not a readable tokenizer: {(str(error) or type(error).__name__).splitlines()[0]}"
            ) from error
        self.ignored = self._without_settings()
        """Settings in the file that would change what is encoded, and are not applied."""
        self._special = {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        self._byte_level = type(self._tokenizer.decoder).__name__ == "ByteLevel"
        self._alphabet = _byte_alphabet()

    def _without_settings(self) -> tuple[str, ...]:
        """Switches off what a tokenizer.json may ask for and a prompt mustn't get; returns what that was."""
        found = [name for name in ("truncation", "padding") if getattr(self._tokenizer, name) is not None]
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if getattr(self._tokenizer.model, "dropout", None):
            self._tokenizer.model.dropout = None
            found.append("dropout")
        return tuple(found)

    def beyond(self, count: int) -> list[str]:
        """The tokens with ids of `count` or more."""
        return [token for token, i in self._tokenizer.get_vocab(with_added_tokens=True).items() if i >= count]

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer adds unless `special` is False."""
        _utf8(text)
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def token_bytes(self, token: int, special: bool = False) -> bytes:
        """The bytes that a token of a byte-level tokenizer stands for; of special tokens those of their names if
        `special`, else none."""
        name = None if token in self._special and not special else self._tokenizer.id_to_token(token)
        if name is None:
            return b""
        codes = [self._alphabet.get(character) for character in name]
        known = [code for code in codes if code is not None]
        return bytes(known) if len(known) == len(codes) else name.encode()

    def continued(self, shown: str, before: str, ids: Sequence[int], answer: Sequence[int]) -> list[int]:
        """Token ids of a text without the tokenizer's own special tokens, of which the begin is known.

        `ids` are those of the text `before`, with which `shown` may begin, and `answer` was generated after them. As
        far as `shown` goes on with what was generated, these ids are kept, although the tokenizer may divide their text
        otherwise: so a model sees what it has said as it said it, and an engine need not compute it again.
        """
        if not self._byte_level or not shown.startswith(before):
            return self.encode(shown, special=False)
        whole, at, kept, end = _utf8(shown), len(_utf8(before)), 0, 0
        for count, token in enumerate(answer, 1):
            found = self.token_bytes(token, special=True)
            if not found or whole[at : at + len(found)] != found:
                break
            at += len(found)
            if at == len(whole) or whole[at] & 0xC0 != 0x80:  # a character begins here
                kept, end = count, at
        if not kept:
            return self.encode(shown, special=False)
        return [*ids, *answer[:kept], *self.encode(whole[end:].decode(), special=False)]

    def pieces(self) -> Pieces:
        """A new decoder of one stream of tokens."""
        return BytePieces(self) if self._byte_level else Pieces(self)


class Pieces:
    """Text of a stream of tokens; what `push` and `finish` return, joined, is the decoded text of all tokens.

    A character whose bytes are not all there yet is held back. Works with any tokenizer whose text only grows; each
    step decodes all tokens so far.
    """

    def __init__(self, text: Text) -> None:
        self._text = text
        self._ids: list[int] = []
        self._done = 0

    def push(self, token: int) -> str:
        """The text that is complete with this token, often empty."""
        self._ids.append(token)
        whole = self._text.decode(self._ids)
        return "" if whole.endswith("\N{REPLACEMENT CHARACTER}") else self._advance(whole)

    def finish(self) -> str:
        """What was held back; a character that stays incomplete shows as U+FFFD, as in `Text.decode`."""
        return self._advance(self._text.decode(self._ids))

    def _advance(self, whole: str) -> str:
        piece, self._done = whole[self._done :], max(self._done, len(whole))
        return piece


class BytePieces(Pieces):
    """Text of a byte-level tokenizer's tokens, which are bytes: decodes each token once."""

    def __init__(self, text: Text) -> None:
        super().__init__(text)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._text.token_bytes(token))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)
