"""A program in a pseudo-terminal: what it shows, and keys for it."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from types import TracebackType
from typing import Self

CONTROL_C, CONTROL_D, ENTER, ALT_ENTER = "\x03", "\x04", "\r", "\x1b\r"

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()=>][0-9A-Z]?|\r")


class Terminal:
    """A running program; its `with` block ends it."""

    def __init__(self, *command: str) -> None:
        # prompt_toolkit asks terminals where the cursor is, and this one has no answer
        environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self._fd, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
            preexec_fn=_controlling,
        )
        os.close(theirs)
        self._shown, self._seen = "", 0

    def type(self, text: str) -> None:
        """Presses keys."""
        os.write(self._fd, text.encode())

    def until(self, words: str, seconds: float = 20) -> str:
        """Waits until the program has shown words since the last call; returns what it showed up to their end."""
        end = time.monotonic() + seconds
        while (at := self._shown.find(words, self._seen)) < 0:
            if not select.select([self._fd], [], [], max(0, end - time.monotonic()))[0]:
                raise AssertionError(f"{words!r} was not shown in {seconds} s, but {self._shown[self._seen :]!r}")
            try:
                self._shown += _ESCAPES.sub("", os.read(self._fd, 65536).decode(errors="replace"))
            except OSError:
                raise AssertionError(f"ended without {words!r}: {self._shown[self._seen :]!r}") from None
        begin, self._seen = self._seen, at + len(words)
        return self._shown[begin : self._seen]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


def _controlling() -> None:
    """Makes the terminal the one whose Ctrl-C reaches the program."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
