"""A chat with a person: what is typed is a message or a command, and answers are shown as they come."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tilecompile.cli.output import accepted, ms_per_token
from tilecompile.errors import InputError
from tilecompile.runtime.conversation import Conversation
from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.sampling import SamplingParams
from tilecompile.runtime.validate import mismatch

if TYPE_CHECKING:
    from tilecompile.runtime.engine import Engine
    from tilecompile.runtime.run import Stats

Read = Callable[[], str]
"""Returns the next message or command; EOFError at the end, KeyboardInterrupt when it is given up."""

SETTINGS = tuple(field.name for field in fields(SamplingParams) if field.name != "allowed_tokens")
"""What /set sets."""

CONTEXT_SHARE = 4
"""An answer may be as long as the context divided by this, unless something else is set."""


class Talk:
    """A chat: the conversation, the parameters of its answers, and the commands."""

    def __init__(self, engine: Engine, params: SamplingParams, system: str | None = None) -> None:
        """InputError if the engine has no chat template."""
        _ = engine.templates
        if params.max_new_tokens is None:
            params = replace(params, max_new_tokens=max(1, engine.manifest.max_seq_len // CONTEXT_SHARE))
        self._engine, self._params = engine, params
        self._talk = Conversation(engine)
        self._talk.system = system

    def run(self, read: Read) -> None:
        """Reads and answers until the end."""
        show(f"{self._engine.manifest.data['model']['name']}: /help lists the commands, Ctrl-D ends the chat")
        while True:
            try:
                line = read()
                if line.startswith("/"):
                    self.command(line)
                elif line.strip():
                    self.answer(line)
            except KeyboardInterrupt:
                show("Ctrl-D or /exit ends the chat")
            except EOFError:
                return
            except (InputError, EngineError) as error:
                typer.secho(f"error: {' '.join(str(error).split())}", fg="red", err=True)

    def answer(self, message: str) -> None:
        """Shows the answer to a message and its figures; an interrupt stops it, and what was said is kept."""
        pieces = self._talk.say(message, self._params)
        begun = stopped = False
        try:
            for piece in pieces:
                print(piece, end="", flush=True)
                begun = True
        except KeyboardInterrupt:
            stopped = True
        finally:
            pieces.close()
            if begun:
                print(flush=True)
        stats = self._talk.stats
        if stats is not None:
            show(figures(stats) + ("; stopped" if stopped else ""))
            if stats.finish == "context":
                show("the context is full: /clear begins anew")

    def command(self, line: str) -> None:
        """Does what a line that begins with / says. InputError for a wrong one, EOFError for the end."""
        name, _, rest = line.strip().partition(" ")
        if name not in COMMANDS:
            raise InputError(f"{name} is no command, want one of: {', '.join(COMMANDS)}")
        COMMANDS[name][2](self, rest.strip())

    def help(self, rest: str) -> None:
        """Lists the commands and keys."""
        width = max(len(f"{name} {usage}") for name, (usage, _, _) in COMMANDS.items())
        for name, (usage, words, _) in COMMANDS.items():
            show(f"{f'{name} {usage}':<{width}}  {words}")
        show("Alt-Enter, or \\ at the end of a line, begins a new line. Ctrl-C stops an answer, Ctrl-D ends the chat.")

    def clear(self, rest: str) -> None:
        """Forgets the messages."""
        self._talk.clear()

    def set(self, rest: str) -> None:
        """Sets a parameter, or shows all of them."""
        name, _, value = rest.partition(" ")
        if not name:
            for setting in SETTINGS:
                show(f"{setting} {json.dumps(getattr(self._params, setting), ensure_ascii=False)}")
            return
        if name not in SETTINGS:
            raise InputError(f"{name!r} is no setting, want one of: {', '.join(SETTINGS)}")
        if not value:
            raise InputError(f"want a value after /set {name}, such as: /set temperature 0.7")
        self._params = replace(self._params, **{name: _value(value.strip())})

    def system(self, rest: str) -> None:
        """Sets or removes the system message."""
        self._talk.system = rest or None

    def save(self, rest: str) -> None:
        """Writes messages and parameters to a file."""
        path = _path(rest)
        settings = {name: getattr(self._params, name) for name in SETTINGS}
        content = json.dumps({"messages": self._talk.messages, "settings": settings}, indent=1, ensure_ascii=False)
        try:
            path.write_text(content + "\n", "utf-8")
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: can't be written: {getattr(error, 'strerror', None) or error}") from error
        show(f"{path}: saved {len(self._talk.messages)} messages")

    def load(self, rest: str) -> None:
        """Reads messages and parameters from a file."""
        path = _path(rest)
        try:
            saved = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from error
        if found := mismatch(saved, {"messages": [dict], "settings": dict}):
            raise InputError(f"{path}: {found}")
        if unknown := sorted(set(saved["settings"]) - set(SETTINGS)):
            raise InputError(f"{path}: settings has {', '.join(unknown)}, want some of: {', '.join(SETTINGS)}")
        settings = {name: _keys(value) for name, value in saved["settings"].items()}
        self._params = replace(self._params, **settings)
        self._talk.messages = saved["messages"]
        show(f"{path}: loaded {len(self._talk.messages)} messages")

    def exit(self, rest: str) -> None:
        """Ends the chat."""
        raise EOFError


COMMANDS: dict[str, tuple[str, str, Callable[[Talk, str], None]]] = {
    "/help": ("", "this list", Talk.help),
    "/clear": ("", "forget the messages, but not the system message", Talk.clear),
    "/set": ("NAME VALUE", "set a parameter, as in /set temperature 0.7; alone: show all", Talk.set),
    "/save": ("FILE", "write messages and parameters to a file", Talk.save),
    "/load": ("FILE", "go on with the messages and parameters of a file", Talk.load),
    "/system": ("TEXT", "set the system message; alone: remove it", Talk.system),
    "/exit": ("", "end the chat", Talk.exit),
}
"""The commands: what follows the name, what it does, and how."""


def show(text: str) -> None:
    """A line that is no part of an answer."""
    typer.secho(text, dim=True, err=True)


def figures(stats: Stats) -> str:
    """The figures of an answer, in one line."""
    each = ms_per_token(stats)
    words = [f"{stats.tokens} tokens (ended by: {stats.finish})"]
    if each:
        words.append(f"{1e3 / each:.0f} tokens/s")
    words.extend(accepted(stats))
    words.append(f"{stats.time_to_first_token_ms:.1f} ms to the first token")
    if stats.cached_tokens:
        words.append(f"{stats.cached_tokens} of {stats.prompt_tokens} prompt tokens were in the caches")
    return ", ".join(words)


def _value(text: str) -> Any:
    """A value as JSON has it, or else the text itself."""
    try:
        return _keys(json.loads(text))
    except ValueError:
        return None if text in ("none", "None") else text


def _keys(value: Any) -> Any:
    """Whole numbers for the keys of an object, which JSON writes as text."""
    if not isinstance(value, dict):
        return value
    return {int(key) if key.isdecimal() else key: item for key, item in value.items()}


def _path(rest: str) -> Path:
    if not rest:
        raise InputError("want the name of a file, such as: /save talk.json")
    return Path(rest).expanduser()


def lines() -> Read:
    """Reads messages from stdin, a line each; a line that ends with a backslash goes on in the next."""

    def read() -> str:
        out = sys.stdin.readline()
        if not out:
            raise EOFError
        while out.endswith("\\\n"):
            out = out[:-2] + "\n" + sys.stdin.readline()
        return out.removesuffix("\n")

    return read


def terminal() -> Read:
    """Reads messages from a terminal, with history and several lines: Enter sends, Alt-Enter begins a new line."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline()
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline()

    completer = WordCompleter([*COMMANDS, *(f"/set {name}" for name in SETTINGS)], sentence=True)
    session: PromptSession[str] = PromptSession(
        "> ", multiline=True, key_bindings=keys, completer=completer, complete_while_typing=False
    )
    return session.prompt
