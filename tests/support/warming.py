"""Helpers for tests of warm-up: reports of the command, and programs that stand in for a peer."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from support.commands import run


def program(folder: Path, text: str) -> str:
    """A command that runs a Python program; it has `mark(name, **more)`."""
    head = """
        import json, sys, time
        def mark(name, **more):
            print(json.dumps({"mark": name, "time": time.monotonic(), **more}), flush=True)
    """
    path = folder / "peer.py"
    path.write_text(textwrap.dedent(head) + textwrap.dedent(text))
    return f"{sys.executable} -S {path}"


GOOD = """
    mark("imported")
    time.sleep(0.05)
    mark("loaded")
    print("half a line", end="\\n")
    print("[1, 2]")
    time.sleep(0.1)
    mark("compiled")
    time.sleep(0.02)
    mark("first_token", token=int(sys.argv[1].split(",")[-1]) + 1)
    print(json.dumps({"files": [__file__]}))
"""


def warmup(engine: str, *args: str) -> dict[str, Any]:
    """What `warmup --json` prints."""
    result = run("warmup", engine, "--repeat", "1", *args, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def peer(found: dict[str, Any], name: str) -> dict[str, Any]:
    """One of the report's systems."""
    return next(system for system in found["systems"] if system["name"] == name)
