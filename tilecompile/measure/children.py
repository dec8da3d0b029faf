"""Child processes that report to their parent in JSON objects, one a line of their stdout."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TextIO


class Child:
    """A process in a session of its own, which ends with the `with` block: it and whatever it has started."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts the command. OSError if it can't be started."""
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        except BaseException:
            self._errors.close()
            raise

    def objects(self) -> Iterator[dict[str, Any]]:
        """The objects on stdout, as they come; other lines are ignored."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError, RecursionError):
                if isinstance(value := json.loads(line), dict):
                    yield value

    def ended(self, seconds: float = 30.0) -> str:
        """Why the process ended without a report, in one line: its exit code and the last line on stderr."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return "it closed its output and went on"
        with contextlib.suppress(ValueError):
            return f"it was ended by {signal.Signals(-code).name}"
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read()[-8192:].decode(errors="replace").splitlines()]
        last = next((line for line in reversed(lines) if line), "nothing on stderr")
        return f"exit code {code}: {last}"

    def wait(self, seconds: float = 30.0) -> None:
        """Waits up to `seconds` for the process to end by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()


def report_stream() -> TextIO:
    """In a child: its stdout for objects alone; whatever libraries print there goes to stderr from now on."""
    sys.stdout.flush()
    stream = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return stream


def module_command(module: str, *arguments: str | Path) -> list[str]:
    """The command that runs a module of this package with this interpreter."""
    return [sys.executable, "-m", module, *map(str, arguments)]
