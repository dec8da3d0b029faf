"""The model's chat template: messages to the text of a prompt, as transformers' `apply_chat_template` makes it.

An engine folder holds the templates and the special tokens that they name in `chat.json`. Templates come with
checkpoints and aren't trusted: they are rendered by jinja2's immutable sandbox, and see copies of plain values only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilecompile.runtime.errors import EngineError, InputError
from tilecompile.runtime.plain import plain
from tilecompile.runtime.validate import MapOf, mismatch

if TYPE_CHECKING:
    from jinja2 import Template

Messages = Sequence[Mapping[str, Any]]

CHAT = "chat.json"
"""The file of an engine folder."""

DEFAULT, TOOL_USE = "default", "tool_use"
"""Names of the template that is used, and of the one that is used instead where there are tools."""

SCHEMA = {"templates": MapOf(str), "special_tokens": MapOf(str)}
"""Keys of chat.json: jinja2 templates by name, and special tokens by the names that templates use (`bos_token` …)."""

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which a message has its reasoning; templates read the first, some the second."""


class ChatTemplates:
    """The chat templates of an engine."""

    def __init__(self, path: Path, content: bytes) -> None:
        """Takes the content of a chat.json. EngineError if it isn't one."""
        try:
            data = json.loads(content)
        except ValueError as error:
            raise EngineError(f"{path}: is not valid JSON: {error}") from error
        if found := mismatch(data, SCHEMA):
            raise EngineError(f"{path}: {found}")
        self._path = path
        self._sources: dict[str, str] = data["templates"]
        self._special: dict[str, str] = data["special_tokens"]
        self._parsed: dict[str, Template] = {}

    def render(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt's text for messages, each with `role` and mostly `content`.

        `tools` are JSON schemas of functions. `chat_template` is the name of a template. `add_generation_prompt` ends
        the text with the begin of an answer. Other arguments are variables of the template. InputError for an empty
        chat, for values that JSON doesn't have, and for what the template refuses or fails at.
        """
        from jinja2.exceptions import TemplateError

        if "continue_final_message" in variables:
            raise InputError("continue_final_message is not known; end the chat with a user's message")
        name = self._chosen(chat_template, tools is not None)
        given = {
            **self._special,
            **plain(variables, ""),
            "messages": _checked(messages),
            "tools": None if tools is None else _objects(tools, "tools", "JSON schemas"),
            "documents": None if documents is None else _objects(documents, "documents", "objects"),
            "add_generation_prompt": bool(add_generation_prompt),
        }
        try:
            return str(self._template(name).render(given))
        except (KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:  # a template may do anything with what it is given
            kind, words = type(error), " ".join(str(error).split())
            what = f"refuses this chat: {words}" if kind is TemplateError else f"fails: {kind.__name__}: {words}"
            raise InputError(f"{self._path}: the chat template {name!r} {what}") from error

    def _chosen(self, name: str | None, tools: bool) -> str:
        """The name of the template to use."""
        if name is None:
            name = TOOL_USE if tools and TOOL_USE in self._sources else DEFAULT
        if name not in self._sources:
            raise InputError(f"{self._path}: has no chat template {name!r}, want one of: {', '.join(self._sources)}")
        return name

    def _template(self, name: str) -> Template:
        if name not in self._parsed:
            from tilecompile.runtime.sandbox import environment

            self._parsed[name] = environment().from_string(self._sources[name])
        return self._parsed[name]


def _objects(items: Any, what: str, want: str) -> list[dict[str, Any]]:
    """A copy of a list of objects, in plain values."""
    if isinstance(items, (str, bytes, Mapping)) or not isinstance(items, Sequence):
        raise InputError(f"{what} is a {type(items).__name__}, want a list of {want}")
    for position, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise InputError(f"{what}[{position}] is a {type(item).__name__}, want an object")
    return [plain(item, f"{what}[{position}]") for position, item in enumerate(items)]


def _checked(messages: Messages) -> list[dict[str, Any]]:
    """A copy of the messages as templates take them: without keys of value None, reasoning under its known names."""
    out = []
    for position, message in enumerate(_objects(messages, "the chat", "messages")):
        if not isinstance(message.get("role"), str):
            raise InputError(f"message {position} has role {message.get('role')!r}, want a word such as 'user'")
        known = {key: value for key, value in message.items() if value is not None}
        reasoning = next((known[key] for key in _REASONING if key in known), None)
        if reasoning is not None:
            known = {"thinking": reasoning, **known, "reasoning_content": reasoning}
        out.append(known)
    if not out:
        raise InputError("the chat is empty, want at least one message")
    return out
