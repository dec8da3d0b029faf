"""Runs the stages of a compilation: each is timed, reported as it begins, and its value written for `--dump DIR`."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from tilecompile.errors import InputError
from tilecompile.runtime.progress import Progress, silent

P = ParamSpec("P")
T = TypeVar("T")
V = TypeVar("V")


@dataclass(frozen=True)
class Stage:
    """The file that takes a stage's value, if it has any to show, and the name that users see while it runs.

    Quick stages have no such name. Stages that are `counted` are reported by `Stages.advance` only.
    """

    file: str | None = None
    name: str | None = None
    counted: bool = False


STAGES = {
    "open": Stage(),
    "choose": Stage("03-place.txt", "choose", counted=True),
    "choose_steps": Stage("01-trace.txt", "choose"),
    "trace": Stage("01-trace.txt", "trace"),
    "fuse": Stage("02-fuse.txt"),
    "place": Stage(),
    "split_over_workers": Stage("03-place.txt"),
    "placement_table": Stage("03-place.txt"),
    "check_fit": Stage(),
    "kinds": Stage(),
    "tile": Stage("04-tile.txt", "tile"),
    "events": Stage("05-events.txt", "events"),
    "schedule": Stage(None, "schedule"),
    "listing": Stage("06-schedule.txt"),
    "verify": Stage("07-verify.txt", "verify"),
    "emit": Stage("08-emit.cpp"),
    "build": Stage(None, "build"),
    "emit_cuda": Stage("08-emit.cu", "build"),
    "pack": Stage(None, "pack", counted=True),
    "pack_text": Stage("09-pack.txt"),
}
"""The stages. Where several write to one file, their values are in it in this order."""


class Stages:
    """The stages of one compilation. `seconds` has the time that each has taken so far."""

    def __init__(self, folder: Path | None = None, progress: Progress = silent) -> None:
        """`folder` is that of `--dump`, `progress` is called as stages begin and advance."""
        self.seconds: dict[str, float] = defaultdict(float)
        self._folder, self._progress = folder, progress
        self._begin = time.perf_counter()
        self._running = ""
        self._texts: dict[str, str] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the compilation began."""
        return time.perf_counter() - self._begin

    def run(self, stage: str, function: Callable[P, V], *args: P.args, **kwargs: P.kwargs) -> V:
        """The value of a stage: what the function returns."""
        with self._timed(stage):
            if not STAGES[stage].counted:
                self.advance(0, 1)
            value = function(*args, **kwargs)
        self._show(stage, [value])
        return value

    def each(
        self,
        stage: str,
        function: Callable[Concatenate[T, P], V],
        items: Iterable[T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> list[V]:
        """The values of a stage that takes one item after the other, such as step programs."""
        given, values = list(items), []
        with self._timed(stage):
            for done, item in enumerate(given):
                self.advance(done, len(given))
                values.append(function(item, *args, **kwargs))
        self._show(stage, values)
        return values

    def show(self, stage: str, function: Callable[[T], object], items: Iterable[T]) -> None:
        """Values that only a dump needs: the function is called only if there is one."""
        if self._folder is not None:
            self._show(stage, [function(item) for item in items])

    def advance(self, done: int, total: int) -> None:
        """Reports how much of the running stage is done."""
        if name := STAGES[self._running].name:
            self._progress(name, done, total)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        self._running, begin = stage, time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - begin

    def _show(self, stage: str, values: list[V]) -> None:
        """Writes a stage's values to its file, over those of an earlier run of the stage."""
        file = STAGES[stage].file
        if self._folder is None or file is None:
            return
        try:
            if not self._texts:
                self._clear(self._folder)
            self._texts[stage] = "".join(map(str, values))
            sharing = [name for name, other in STAGES.items() if other.file == file]
            (self._folder / file).write_text("".join(self._texts.get(name, "") for name in sharing))
        except OSError as error:
            raise InputError(f"--dump {self._folder}: can't be written: {error.strerror or error}") from error

    @staticmethod
    def _clear(folder: Path) -> None:
        """Makes the folder, without the files of an earlier compilation."""
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("[0-9][0-9]-*"):
            old.unlink()
