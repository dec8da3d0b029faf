"""The command line in the test's own process."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from tilecompile.cli.app import app


def run(*args: str) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args])


def refused(*args: str, code: int = 2) -> str:
    """The one line on stderr of a command that fails."""
    result = run(*args)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]
