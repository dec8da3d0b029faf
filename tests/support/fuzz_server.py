"""A process that tries engine folders, so that a crash is seen as one and a hang as one; and the fuzzing's outcomes."""

from __future__ import annotations

import io
import json
import os
import selectors
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from support.fuzz_engine import damaged
from support.paths import TESTS

PROMPT, COUNT = [1, 2, 3], 12
SECONDS = 20.0
"""Time in which a case must end."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended: refused, stalled, same, another (tokens), error (an unexpected exception), crash or hang."""

    seed: int
    case: str
    result: str
    detail: str


def attempt(path: str) -> tuple[str, str]:
    """Loads an engine and generates with it: result and detail."""
    import tilecompile
    from tilecompile.errors import EngineStalled, TilecompileError

    try:
        with tilecompile.load(path, check_weights=True, stall_seconds=0.3) as engine:
            out = engine.generate(PROMPT, COUNT)
            if engine.text:
                engine.generate("ab", 1)
            return "tokens", json.dumps(out.tokens)
    except EngineStalled as error:
        return "stalled", str(error)
    except TilecompileError as error:
        return "error" if "\n" in str(error) else "refused", str(error)
    except BaseException as error:  # panics of the tokenizer's library included
        return "error", f"{type(error).__name__}: {error}"


class Server:
    """A process that attempts engines; a new one after a crash or a hang."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def attempt(self, path: Path) -> tuple[str, str]:
        """What `attempt` returns, or ("crash", signal) or ("hang", seconds)."""
        if self._process is None:
            command = [sys.executable, "-m", "support.fuzz_server"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=TESTS
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{path}\n".encode())
        process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(SECONDS):
                self.close()
                return "hang", f"no answer within {SECONDS} s"
        line = process.stdout.readline()
        if line:
            result, detail = json.loads(line)
            return result, detail
        code = process.wait()
        self.close()
        return "crash", f"exit code {code}"

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def run(engine: Path, scratch: Path, seeds: range) -> list[Outcome]:
    """The outcomes of the cases with these seeds; the folders of those that ran otherwise stay, as `case<seed>`."""
    outcomes, server = [], Server()
    result, want = server.attempt(engine)
    assert result == "tokens", want
    try:
        for seed in seeds:
            folder = scratch / f"case{seed}"
            case = damaged(engine, folder, seed)
            result, detail = server.attempt(folder)
            if result == "crash":  # whose? An earlier case may have spoiled the process
                result, detail = server.attempt(folder)
                assert result == "crash", f"case {seed} or one shortly before it crashed"
            if result == "tokens":
                result = "same" if detail == want else "another"
            outcomes.append(Outcome(seed, case, result, detail))
            if result in ("refused", "same"):
                shutil.rmtree(folder)
    finally:
        server.close()
    return outcomes


def main() -> None:
    """Answers each path on stdin with a line of JSON."""
    answers = io.TextIOWrapper(os.fdopen(os.dup(1), "wb"), encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints
    for line in sys.stdin:
        print(json.dumps(attempt(line.rstrip("\n"))), file=answers, flush=True)


if __name__ == "__main__":
    main()
