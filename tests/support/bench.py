"""The command `bench` in the test's own process."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tilecompile.cli.app import app
from tilecompile.measure.bench import prefill, speculation


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, args)])


def answer(*args: object) -> dict[str, Any]:
    """What the command prints with --json."""
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(*args: object) -> str:
    """The one line on stderr of a command that fails before it measures."""
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def shorten_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts and rounds of speculation in their shortest form."""
    monkeypatch.setattr(prefill, "LENGTHS", (40, 70))
    monkeypatch.setattr(prefill, "SECONDS", 0.0)
    monkeypatch.setattr(speculation, "LEAST_TOKENS", 24)
    monkeypatch.setattr(speculation, "MOST_TOKENS", 24)
    monkeypatch.setattr(speculation, "SECONDS", 0.0)
