"""The value of every pass in readable form, for `compile --dump DIR`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tilecompile.errors import InputError

V = TypeVar("V")


class Dump:
    """Writes each stage's value to `DIR/NN-stage.txt`, if a folder was asked for; values of one stage share a file."""

    STAGES = ("trace", "fuse", "place", "tile", "events", "schedule", "verify", "emit", "pack")

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.begin()

    def begin(self) -> None:
        """Makes the folder, and removes the values of earlier passes."""
        if self.folder:
            with self._written():
                self.folder.mkdir(parents=True, exist_ok=True)
                for old in self.folder.glob("[0-9][0-9]-*"):
                    old.unlink()

    def add(self, stage: str, value: V, suffix: str = "txt") -> V:
        """Writes the value and returns it."""
        if self.folder:
            name = f"{self.STAGES.index(stage) + 1:02}-{stage}.{suffix}"
            text = str(value)
            with self._written(), (self.folder / name).open("a") as file:
                file.write(text)
        return value

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"--dump {self.folder}: can't be written: {error.strerror or error}") from error
