"""Helpers for tests of faults: programs that use an engine in their own process, and what they leave in a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import tilecompile

PROMPT = [1, 2, 3]


def script(tiny: Path, text: str, *wrapper: str, code: int = 0, timeout: float = 60) -> str:
    """Runs a program that has an engine `e` and PROMPT; its stdout. It must end with `code` and silently."""
    lines = [
        "import os, sys, threading, time, tilecompile",
        f"PROMPT = {PROMPT}",
        f"e = tilecompile.load({str(tiny)!r})",
    ]
    command = [*wrapper, sys.executable, "-c", "\n".join([*lines, text])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert (done.returncode, done.stderr) == (code, ""), f"ended with {done.returncode}: {done.stderr}"
    return done.stdout


def feeding(engine: tilecompile.Engine, count: int, every: bool = False) -> int:
    """Steps that feed so many ids; with `every`, the logits of all of them are asked for."""
    tokens = {str(program["name"]): int(program["tokens"]) for program in engine.manifest.data["programs"]}
    return -(-count // tokens.get("verify" if every else "prefill", 1))


def left(folder: Path) -> list[str]:
    """The entries of a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())
