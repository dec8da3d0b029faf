"""The command `bench` in the test's own process."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from tilecompile.cli.app import app


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, args)])


def refused(*args: object) -> str:
    """The one line on stderr of a command that fails before it measures."""
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]
