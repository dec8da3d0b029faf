"""What a measured process reports: lines of JSON on its stdout, written the moment something is done.

    {"mark": "imported", "time": 12.345678}              in this order: imported, loaded, compiled, first_token
    {"mark": "first_token", "time": 12.6, "token": 17}
    {"files": ["/usr/lib/…", …]}                         after the first token: the files that the process has read
    {"error": "…"}                                       instead, in one line

`time` is CLOCK_MONOTONIC in seconds, which all processes of a machine share. Only first_token is needed; the time of a
mark that is left out falls to the next one. Without `files` there is no cold run, since the files to evict are unknown.

This file is a program, `python marks.py RUN ARGUMENTS…`, which calls `main(mark, *arguments)` of RUN.py beside it. It
imports next to nothing, since that is measured, and nothing of this package, so that peers don't pay for its import.
"""

from __future__ import annotations

import os
import sys
import time
from importlib.machinery import SourceFileLoader
from types import ModuleType

MARKS = ("imported", "loaded", "compiled", "first_token")

_OUT = 1


def mark(name: str, token: int | None = None) -> None:
    """Reports that something is done, now; with the first token its id."""
    now = time.monotonic()
    more = "" if token is None else f', "token": {token}'
    _write(f'{{"mark": "{name}", "time": {now:.6f}{more}}}')


def files() -> None:
    """Reports the files that this process has mapped or imported."""
    import json

    found = {getattr(module, name, None) for module in [*sys.modules.values()] for name in ("__file__", "__cached__")}
    with open("/proc/self/maps") as maps:
        found |= {fields[5].rstrip("\n") for line in maps if len(fields := line.split(maxsplit=5)) == 6}
    kept = sorted(name for name in found if isinstance(name, str) and name.startswith("/") and os.path.isfile(name))
    _write(json.dumps({"files": kept}))


def failed(error: BaseException) -> None:
    """Reports an error, in one line."""
    import json

    text = " ".join(str(error).split()) or type(error).__name__
    _write(json.dumps({"error": text[:500]}))


def _write(line: str) -> None:
    data = (line + "\n").encode()
    while data:
        data = data[os.write(_OUT, data) :]


def _run(name: str, *arguments: str) -> None:
    """Calls a program's `main`, as if it had been run with `python -m`."""
    global _OUT
    _OUT = os.dup(1)
    os.dup2(2, 1)  # what libraries print goes to stderr
    folder, sys.path[0] = sys.path[0], os.getcwd()
    module = ModuleType(name)
    try:
        SourceFileLoader(name, f"{folder}/{name}.py").exec_module(module)
        module.main(mark, *arguments)
        files()
    except Exception as error:
        failed(error)


if __name__ == "__main__":
    _run(*sys.argv[1:])
