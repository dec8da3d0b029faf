"""Stop strings, on the host: text is shown only once it can't be part of a stop string any more.

A request ends where a stop string first becomes complete, whatever tokens its characters came in: of several, the one
that ends first counts, and of those that end there the longest. What is shown is the text before it, or with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilecompile.runtime.sampling import SamplingParams
from tilecompile.runtime.text import Pieces


class _Progress:
    """How much of one string the end of a text is the begin of, character by character (Knuth, Morris, Pratt 1977)."""

    def __init__(self, string: str) -> None:
        self.string, self.length = string, 0
        self._shorter = [0]  # by length: the longest begin of the string that is also the end of so much of it
        for character in string[1:]:
            self._shorter.append(self._after(self._shorter[-1], character))

    def _after(self, length: int, character: str) -> int:
        while length and self.string[length] != character:
            length = self._shorter[length - 1]
        return length + (self.string[length] == character)

    def push(self, character: str) -> bool:
        """Takes the text's next character; returns whether the string is complete, and then takes no more."""
        self.length = self._after(self.length, character)
        return self.length == len(self.string)


class StopStrings:
    """Looks for stop strings in text that arrives in pieces; holds back what may still become one.

    What `push` and `finish` return, joined, is the text up to the stop string, or all of it. It doesn't depend on where
    the text was divided. The work grows with the characters and the number of strings, not with their lengths.
    """

    def __init__(self, strings: Sequence[str], include: bool = False) -> None:
        """With `include`, the stop string itself is shown too. No string is empty."""
        self._strings, self._include = [_Progress(string) for string in strings], include
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the text."""

    def push(self, piece: str) -> str:
        """The text that can be shown now, often empty; nothing after a stop string."""
        if self.matched is not None:
            return ""
        if not self._strings:
            return piece
        before, text = len(self._held), self._held + piece
        for end, character in enumerate(piece, before + 1):
            complete = [string.string for string in self._strings if string.push(character)]
            if complete:
                self.matched, self._held = max(complete, key=len), ""
                return text[: end if self._include else end - len(self.matched)]
        shown = len(text) - max(string.length for string in self._strings)
        self._held = text[shown:]
        return text[:shown]

    def finish(self) -> str:
        """What was held back and became no stop string."""
        held, self._held = self._held, ""
        return held


class ShownText:
    """The text that a request shows of its tokens: up to a stop string, and without the stop ids.

    The text of the first `min_tokens` tokens is shown without looking for stop strings in it.
    """

    def __init__(self, pieces: Pieces, params: SamplingParams) -> None:
        self._pieces, self._stop_ids = pieces, frozenset(params.stop_token_ids)
        self._stops, self._left = StopStrings(params.stop, params.include_stop), params.min_tokens

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text, if one did: no token after it counts."""
        return self._stops.matched

    def push(self, token: int) -> str:
        """The text that can be shown with this token, often empty."""
        piece = "" if token in self._stop_ids else self._pieces.push(token)
        if self._left > 0:
            self._left -= 1
            return piece
        return self._stops.push(piece)

    def finish(self) -> str:
        """The rest of the text; empty after a stop string."""
        return self._stops.push(self._pieces.finish()) + self._stops.finish()
