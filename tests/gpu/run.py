"""Checks and measures everything on a real GPU, in one call of at most ten minutes.

    python tests/gpu/run.py FOLDER [--only a,c] [--json OUT]

FOLDER is what `prepare.py` made. Needs this repository, numpy, torch, rich and cuda-bindings, and no compiler. Each
part is a process of its own, which is ended when its time is over, so that no fault of one stops the others.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:1] = [str(HERE.parent), str(HERE.parents[1])]

import tilecompile  # noqa: E402
from gpu import folder as prepared  # noqa: E402
from tilecompile.errors import InputError, TilecompileError  # noqa: E402

Json = dict[str, Any]

TOTAL = 580.0
"""Seconds that all parts may take together."""
GRACE = 20.0
"""Seconds that a part gets beyond its own, for what it has begun."""
LEAST = 15.0
"""Seconds without which no part is begun."""


@dataclass(frozen=True)
class Part:
    """A part: a letter for it and its like, module and function, seconds, and what it needs prepared."""

    letter: str
    module: str
    seconds: float
    needs: str
    function: str = "run"


PARTS = {
    "smoke": Part("a", "smoke", 15, "smoke"),
    "ops": Part("b", "ops", 110, "ops"),
    "model": Part("c", "model", 90, "tiny"),
    "faults": Part("d", "faults", 60, "tiny"),
    "bandwidth": Part("e", "bandwidth", 40, "streams"),
    "share": Part("e", "share", 90, "glm5"),
    "baseline": Part("e", "baseline", 50, "glm5"),
    "graphs": Part("e", "graphs", 60, "glm5"),
    "mini": Part("e", "share", 25, "mini", "run_mini"),
    "programs": Part("e", "programs", 20, "mini"),
    "timeline": Part("f", "stamps", 60, "mini"),
}


def chosen(text: str | None, index: Json) -> list[str]:
    """The parts that --only names, by letter or name; without it all that are prepared. InputError for others."""
    available = [name for name, part in PARTS.items() if part.needs in index["parts"]]
    if text is None:
        return available
    wanted = text.split(",")
    letters = sorted({part.letter for part in PARTS.values()})
    for one in wanted:
        if one not in PARTS and one not in letters:
            raise InputError(f"--only has {one!r}; there are {', '.join(letters)} and {', '.join(PARTS)}")
    found = [name for name, part in PARTS.items() if name in wanted or part.letter in wanted]
    if missing := [name for name in found if name not in available]:
        raise InputError(f"{', '.join(missing)}: the folder has nothing prepared for that, only {', '.join(available)}")
    return found


def run_part(name: str, folder: prepared.Folder, earlier: Json, seconds: float) -> Json:
    """Runs one part in this process; what it raises becomes its `error`."""
    part = PARTS[name]
    try:
        work = getattr(importlib.import_module(f"gpu.{part.module}"), part.function)
        return dict(work(folder, seconds, earlier))
    except TilecompileError as error:
        return {"passed": False, "error": str(error)}
    except Exception as error:  # whatever it is: the other parts go on
        lines = str(error).splitlines()
        return {"passed": False, "error": f"{type(error).__name__}: {lines[0] if lines else ''}"}


def in_process(name: str, source: Path, work: Path, earlier: Json, seconds: float) -> Json:
    """Runs one part in a process of its own, with GRACE beyond its seconds."""
    given, result = work / f"{name}.earlier.json", work / f"{name}.json"
    given.write_text(json.dumps(earlier))
    command = [sys.executable, str(HERE / "run.py"), str(source), "--part", name, "--seconds", str(seconds)]
    command += ["--work", str(work), "--json", str(result)]
    begin = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + GRACE)
        said = done.stderr.strip().splitlines()
        error = f"exit code {done.returncode}: {said[-1] if said else 'nothing said'}"
    except subprocess.TimeoutExpired:
        error = f"ended after {seconds + GRACE:.0f} s: it didn't end by itself"
    found: Json = {"passed": False, "error": error}
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(result.read_text())
    return {**found, "seconds": time.monotonic() - begin}


def about_gpu() -> Json:
    """Name of the GPU and version of its driver, as nvidia-smi prints them; None for what it doesn't."""
    fields = {"gpu": "name", "driver": "driver_version"}
    out: Json = dict.fromkeys(fields)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader", "--id=0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        out = dict(zip(fields, (text.strip() for text in done.stdout.splitlines()[0].split(",")), strict=True))
    return out


def speed(parts: Json, about: Json) -> Json:
    """What `tilecompile calibrate --from` takes: bandwidth in bytes a second, times in ns."""
    band, line = parts.get("bandwidth", {}), parts.get("timeline", {})
    found = {key: band.get(key) for key in ("read_bandwidth", "event_latency_ns")}
    found["task_start_ns"] = line.get("task_start_ns")
    return {**{key: value for key, value in found.items() if value is not None}, **about}


def run_all(source: Path, names: list[str], output: Path | None, total: float) -> Json:
    """Runs the parts one after the other; returns the results."""
    about: Json = {
        **about_gpu(),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "tests/gpu/run.py", *sys.argv[1:]]),
    }
    parts: Json = {}
    end = time.monotonic() + total
    with prepared.temporary() as name:
        work = Path(name)
        prepared.unpack(source, work / "files")
        for part in names:
            left = end - time.monotonic()
            if left < LEAST:
                parts[part] = {"passed": False, "error": "left out: no time was left for it"}
                continue
            seconds = max(LEAST, min(PARTS[part].seconds, left - GRACE))
            print(f"{part}, {seconds:.0f} s at most", file=sys.stderr, flush=True)
            earlier = {**parts, "output": str(output.absolute().parent) if output else None}
            parts[part] = in_process(part, source, work, earlier, seconds)
    about["gpu"] = about["gpu"] or next((found["gpu"] for found in parts.values() if "gpu" in found), None)
    return {**about, "tilecompile": tilecompile.__version__, "parts": parts, "speed": speed(parts, about)}


def show(results: Json) -> None:
    """The results as a table on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title = f"{results['gpu'] or 'unknown GPU'}, driver {results['driver']}, {results['date']}"
    table = Table("", "part", "", "", "", title=Text(title), title_justify="left")
    for name, found in results["parts"].items():
        state = "passed" if found["passed"] else "FAILED"
        rows = [("", found["error"], "")] if "error" in found else found.get("summary", [])
        table.add_row(PARTS[name].letter, name, state, *map(Text, rows[0] if rows else ("", "", "")))
        for row in rows[1:]:
            table.add_row("", "", "", *map(Text, row))
        if found.get("left_out"):
            table.add_row("", "", "", "left out", Text(", ".join(map(str, found["left_out"]))), "")
    Console().print(table)


def main() -> int:
    """The command: 0 if all parts passed, 1 if not, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what prepare.py made")
    parser.add_argument("--only", help="letters a to f or names of parts, separated by commas")
    parser.add_argument("--json", type=Path, help="write the results there; traces go beside it")
    parser.add_argument("--seconds", type=float, default=TOTAL, help="for all parts together")
    for hidden in ("--part", "--work"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        work = Path(given.work)
        folder = prepared.Folder(prepared.read_index(given.folder), work / "files")
        earlier = json.loads((work / f"{given.part}.earlier.json").read_text())
        found = run_part(given.part, folder, earlier, given.seconds)
        given.json.write_text(json.dumps(found, default=lambda number: number.item()))
        return 0
    try:
        names = chosen(given.only, prepared.read_index(given.folder))
        if given.json is not None:
            given.json.absolute().parent.mkdir(parents=True, exist_ok=True)
            given.json.touch()
        results = run_all(given.folder, names, given.json, given.seconds)
    except (TilecompileError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(results)
    if given.json is not None:
        given.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if all(found["passed"] for found in results["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
