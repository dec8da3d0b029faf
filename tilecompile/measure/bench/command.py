"""Peers that are commands: another engine, measured by a program that prints what it found.

A command gets a prompt's length and how many tokens to generate greedily after it, stop ids ignored: each but the first
is one step. It prints one line {"ms_per_step": …, "first_token_ms": …}: the mean time of a step, and the time from the
request to the first token, once it is warm. Other lines are ignored. `examples/peers/` has such programs.
"""

from __future__ import annotations

import math
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilecompile.errors import InputError
from tilecompile.measure.children import Child
from tilecompile.measure.commands import filled, named_command
from tilecompile.measure.peers import PeerError, weights_job
from tilecompile.measure.steps import window
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.progress import Progress

STEPS = 64
FIELDS = ("ms_per_step", "first_token_ms")


@dataclass(frozen=True)
class CommandPeer:
    """A name and the words of a command, with {model}, {prompt_tokens} and {new_tokens} to be filled in."""

    name: str
    words: tuple[str, ...]

    def unavailable(self) -> str | None:
        """Why it can't run here, in one line, or None."""
        return None if shutil.which(self.words[0]) else f"no program {self.words[0]}"

    def needs_model(self) -> bool:
        """Whether the command takes a checkpoint folder."""
        return any("{model}" in word for word in self.words)

    def measure(self, manifest: Manifest, model: str | None, context: int, progress: Progress) -> dict[str, Any]:
        """Runs the command: `name`, `context` (of the middle step), FIELDS, and the command under `settings`.

        PeerError in one line if it can't be started, fails, or doesn't print its figures.
        """
        contexts = window(context, STEPS, manifest.max_seq_len)
        # A prompt of n tokens makes the first new one; the step that takes it sees n + 1 positions.
        values = {"prompt_tokens": str(contexts.start - 1), "new_tokens": str(len(contexts) + 1)}
        values["model"] = str(Path(model).absolute()) if model else ""
        words = filled(self.words, values)
        progress(shlex.join(words), 0, 1)
        found: dict[str, float] = {}
        try:
            with Child(words, {}) as child:
                for line in child.objects():
                    if "error" in line:
                        raise PeerError(f"peer {self.name}: {' '.join(str(line['error']).split())}")
                    if any(field in line for field in FIELDS):
                        found = {field: self._time(line, field) for field in FIELDS}
                if not found:
                    ended = child.ended()
                    raise PeerError(f"peer {self.name}: printed no line with {' and '.join(FIELDS)}: {ended}")
        except OSError as error:
            raise PeerError(f"peer {self.name}: can't be started: {error.strerror or error}") from error
        return {"name": self.name, "context": context, **found, "settings": {"command": shlex.join(words)}}

    def _time(self, line: dict[str, Any], field: str) -> float:
        value = line.get(field)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise PeerError(f"peer {self.name}: {field} is {value!r}, want milliseconds")
        return float(value)


def command_peers(texts: Sequence[str]) -> list[CommandPeer]:
    """The peers of some --peer NAME=COMMAND. InputError for a text that isn't that."""
    return [CommandPeer(*named_command(text)) for text in texts]


def check_model(peers: Sequence[CommandPeer], manifest: Manifest, model: str | None) -> None:
    """InputError where a command needs a checkpoint folder and there is none, or another model's."""
    for peer in peers:
        if peer.needs_model():
            if model is None or not Path(model).is_dir():
                raise InputError(f"peer {peer.name}: its command names {{model}}: give --model FOLDER, a checkpoint")
            weights_job(manifest, model)
