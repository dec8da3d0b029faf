"""A chat with an engine, turn after turn: the messages so far, and the ids that the engine has seen for them."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilecompile.runtime.chat import Messages
from tilecompile.runtime.errors import InputError
from tilecompile.runtime.sampling import GREEDY, SamplingParams

if TYPE_CHECKING:
    from tilecompile.runtime.engine import Engine
    from tilecompile.runtime.run import Stats


@dataclass(frozen=True)
class _Seen:
    """A prompt's text and ids, and the ids generated after it."""

    shown: str
    ids: list[int]
    answer: list[int]


class Conversation:
    """The messages of a chat. `say` adds a user's message and the answer to it.

    The next prompt begins with the ids of the one before and of its answer, as far as the template shows their text
    unchanged, so that the engine's caches hold them.
    """

    def __init__(self, engine: Engine, messages: Messages = (), **template: Any) -> None:
        """Begins with the given messages; `template` are arguments of `ChatTemplates.render` for all turns."""
        self._engine, self._template = engine, template
        self.messages: list[Mapping[str, Any]] = list(messages)
        self.stats: Stats | None = None
        """Figures of the latest answer."""
        self._seen: _Seen | None = None

    @property
    def system(self) -> str | None:
        """The system message at the begin, or None; setting it replaces or removes it."""
        first = self.messages[0] if self.messages else {}
        return str(first.get("content")) if first.get("role") == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        rest = self.messages if self.system is None else self.messages[1:]
        self.messages = [*([] if text is None else [{"role": "system", "content": text}]), *rest]

    def clear(self) -> None:
        """Forgets all messages but the system message."""
        self.messages = [] if self.system is None else self.messages[:1]

    def prompt(self, messages: Messages) -> tuple[str, list[int]]:
        """The text of messages in the template and its ids, as `say` has them; InputError as from `Engine.chat`."""
        text = self._engine.text
        if text is None:
            raise InputError(f"{self._engine.manifest.folder}: the engine has no tokenizer, and a chat needs one")
        shown = self._engine.templates.render(messages, **self._template)
        if self._seen is None:
            return shown, text.encode(shown, special=False)
        return shown, text.continued(shown, self._seen.shown, self._seen.ids, self._seen.answer)

    def say(self, content: str, params: SamplingParams = GREEDY) -> Generator[str, None, None]:
        """The pieces of the answer to a user's message, as they come.

        Both become messages when the answer ends, or is given up by closing the iterator or by an exception: then with
        what was said until then. Nothing is added where nothing was said.
        """
        asked = [*self.messages, {"role": "user", "content": content}]
        shown, ids = self.prompt(asked)
        said: list[str] = []
        answer: list[int] = []
        stream = self._engine.stream(ids, params)
        try:
            for token in stream:
                answer.append(token)
                said.append(stream.piece)
                yield stream.piece
            said.append(stream.piece)
            yield stream.piece
        finally:
            stream.close()
            self.stats = stream.stats
            if answer:
                self.messages = [*asked, {"role": "assistant", "content": "".join(said)}]
                self._seen = _Seen(shown, ids, answer)
