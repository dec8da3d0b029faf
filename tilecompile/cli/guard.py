"""Wraps every command: an error is one line and an exit code, never a traceback."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, ParamSpec

import typer
from typer.core import TyperGroup

from tilecompile.runtime.errors import TilecompileError

P = ParamSpec("P")


def _fail(message: str, code: int) -> typer.Exit:
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    return typer.Exit(code)


class OneLine(TyperGroup):
    """Commands whose wrong usage, like an unknown option, is one line too, with a pointer to the help."""

    def main(self, *args: Any, **how: Any) -> Any:
        """As typer's."""
        inner = {**how, "standalone_mode": False}
        try:
            code = super().main(*args, **inner)
        except Exception as error:  # click's, of which some versions of typer have a copy with classes of its own
            if not hasattr(error, "format_message") or type(error).__name__ == "NoArgsIsHelpError":
                return super().main(*args, **how)
            context = getattr(error, "ctx", None)
            path = context.command_path if context else "tilecompile"
            sys.exit(_fail(f"{error.format_message().rstrip('.')}; see {path} --help", 2).exit_code)
        sys.exit(code if isinstance(code, int) else 0)


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Every error is one line: exit code 2 for what the user can mend, 1 for the unexpected, 130 for Ctrl-C."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except typer.Exit:
            raise
        except TilecompileError as error:
            raise _fail(str(error), 2) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader is gone: end quietly
            raise typer.Exit(1) from None
        except Exception as error:
            if os.environ.get("TILECOMPILE_TRACEBACK"):
                raise
            what = f"unexpected {type(error).__name__}: {error}"
            raise _fail(f"{what} (set TILECOMPILE_TRACEBACK=1 to see where it happened)", 1) from None

    return run
