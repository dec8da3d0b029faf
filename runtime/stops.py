"""Stop strings, on the host: text is shown only once it can't be part of a stop string any more.

A request ends where a stop string first becomes complete, whatever tokens its characters came in: of several, the one
that ends first counts, and of those that end there the longest. What is shown is the text before it, or with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilecompile.runtime.text import Pieces


class StopStrings:
    """Looks for stop strings in text that arrives in pieces; holds back what may still become one.

    What `push` and `finish` return, joined, is the text up to the stop string, or all of it. It doesn't depend on where
    the text was divided.
    """

    def __init__(self, strings: Sequence[str], include: bool = False) -> None:
        """With `include`, the stop string itself is shown too."""
        self._strings, self._include = tuple(strings), include
        self._longest = max(map(len, self._strings), default=0)
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the text."""

    def push(self, piece: str) -> str:
        """The text that can be shown now, often empty; nothing after a stop string."""
        if self.matched is not None or not piece:
            return ""
        text = self._held + piece
        found = [(at + len(stop), -len(stop), stop) for stop in self._strings if (at := text.find(stop)) >= 0]
        if found:
            end, _, self.matched = min(found)
            self._held = ""
            return text[: end if self._include else end - len(self.matched)]
        kept = self._may_begin(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """What was held back and became no stop string."""
        held, self._held = self._held, ""
        return held

    def _may_begin(self, text: str) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        lengths = range(min(self._longest - 1, len(text)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._strings)), 0)


class StoppedPieces:
    """The text of a stream of tokens up to a stop string; used as `Pieces`.

    The text of the first `min_tokens` tokens is shown without looking for stop strings in it.
    """

    def __init__(self, pieces: Pieces, strings: Sequence[str], include: bool = False, min_tokens: int = 0) -> None:
        self._pieces, self._stops, self._left = pieces, StopStrings(strings, include), min_tokens

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text, if one did: no token after it counts."""
        return self._stops.matched

    def push(self, token: int) -> str:
        """The text that can be shown with this token, often empty."""
        piece = self._pieces.push(token)
        if self._left > 0:
            self._left -= 1
            return piece
        return self._stops.push(piece)

    def finish(self) -> str:
        """The rest of the text; empty after a stop string."""
        return self._stops.push(self._pieces.finish()) + self._stops.finish()
