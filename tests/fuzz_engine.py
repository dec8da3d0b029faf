"""Fuzzing of engine folders: damage drawn from a seed, and what loading and generating make of it.

A case must end in a refusal (one line), in EngineStalled, or in the original tokens. It runs in a server process, so
that a crash is seen as one, and a hang as one. Kinds of cases:

    bytes     one byte altered, a file cut short, lengthened, removed, exchanged with another one or replaced by a
              folder, a link or a pipe; hashes as they were
    manifest  engine.json altered in its structure, with its own hash right again: schema and ranges are what refuses
    headers   one byte of a table's file altered, with hashes right again
    tables    entries of a table altered, with hashes right again
    text      the tokenizer altered, with hashes right again

The last two can make another engine, about which loading says nothing. What it can refuse are indices that lead
nowhere and addresses for which the kernel wasn't built (`runtime/contract.py`). A wrong schedule (who waits for what,
in which order) passes, where it doesn't stall it may give other tokens, and to prove that it is right is the business
of `tilecompile verify`: such cases are counted apart as "another", and the tests ask the verifier to reject them. The
hashes of an altered kernel are never mended: it is a program, and nothing can be said about what another one does.
"""

from __future__ import annotations

import io
import json
import os
import random
import selectors
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import damage
import numpy as np

from tilecompile.runtime.format import TABLES

PROMPT, COUNT = [1, 2, 3], 12
SECONDS = 20.0
"""Time in which a case must end."""

KINDS = ("bytes", "bytes", "manifest", "manifest", "headers", "tables", "tables", "tables", "text")
"""Kinds of cases, as often as they are drawn."""

NUMBERS = (0, 1, 2, 3, 7, 63, 255, 1 << 15, 65535, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 62, 1 << 63, 1 << 64)


@dataclass(frozen=True)
class Outcome:
    """How a case ended: refused, stalled, same, another (tokens), error (an unexpected exception), crash or hang."""

    case: str
    result: str
    detail: str


def damaged(engine: Path, folder: Path, seed: int) -> str:
    """Makes a damaged copy of an engine in `folder`; says what was done to it."""
    rng = random.Random(seed)
    damage.copy(engine, folder)
    kind = KINDS[seed % len(KINDS)]
    makers: dict[str, Callable[[Path, random.Random], str]] = {
        "bytes": _bytes,
        "manifest": _manifest,
        "headers": _headers,
        "tables": _tables,
        "text": _text,
    }
    return f"{kind}: {makers[kind](folder, rng)} (seed {seed})"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _bytes(folder: Path, rng: random.Random) -> str:
    path = rng.choice(_files(folder))
    name, content = path.relative_to(folder), path.read_bytes()
    what = rng.choice(("flip", "flip", "flip", "cut", "cut", "append", "remove", "exchange", "folder", "link", "pipe"))
    if what == "flip":
        position, mask = rng.randrange(len(content)), rng.randrange(1, 256)
        damage.flip(path, position, mask)
        return f"byte {position} of {name} ^ {mask}"
    if what == "cut":
        size = rng.choice((0, len(content) - 1, rng.randrange(len(content))))
        damage.put(path, content[:size])
        return f"{name} cut to {size} bytes"
    if what == "append":
        damage.put(path, content + rng.randbytes(rng.randrange(1, 100)))
        return f"{name} lengthened"
    if what == "exchange":
        other = rng.choice([p for p in _files(folder) if p != path])
        theirs = other.read_bytes()
        damage.put(path, theirs)
        damage.put(other, content)
        return f"{name} exchanged with {other.relative_to(folder)}"
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "link":
        path.symlink_to(rng.choice(("/etc/passwd", "/dev/zero", "/dev/stdin", path.name, "../..", "/proc/self/mem")))
    elif what == "pipe":
        os.mkfifo(path)
    return f"{name}: {what}"


def _number(rng: random.Random, old: int) -> int:
    return rng.choice((old + 1, old - 1, -old, old * 2, rng.choice(NUMBERS), -1, rng.randrange(1 << 70)))


def _value(rng: random.Random, old: Any) -> Any:
    """Something else in the place of a JSON value."""
    if isinstance(old, int) and not isinstance(old, bool) and rng.random() < 0.6:
        return _number(rng, old)
    nested: Any = []
    for _ in range(rng.choice((1, 50, 500))):
        nested = [nested]
    names = (
        "",
        "a",
        "\0",
        "..",
        "../x",
        "/etc/passwd",
        "\ud800",
        "x" * 300,
        "x" * 5000,
        "kernel.so",
        "🎈",
        "engine.json",
    )
    numbers = (0, -1, 1.5, 1e308, float("nan"), float("inf"), True, False, rng.choice(NUMBERS))
    return rng.choice((None, rng.choice(names), rng.choice(numbers), {}, [], nested, {"": 1}, [old, old], {"a": old}))


def _alter(node: Any, rng: random.Random) -> str:
    """Alters one place of a JSON value."""
    where = ""
    while True:
        keys: list[Any] = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        key = rng.choice(keys)
        if not isinstance(node[key], (dict, list)) or not node[key] or rng.random() < 0.15:
            break
        node, where = node[key], f"{where}[{key!r}]"
    if not keys:
        return "nothing"
    what = rng.choice(("set", "set", "set", "set", "delete", "exchange", "add"))
    if what == "delete":
        del node[key]
    elif what == "exchange":
        other = rng.choice(keys)
        node[key], node[other] = node[other], node[key]
    elif what == "add" and isinstance(node, list):
        node.insert(key, _value(rng, node[key]) if rng.random() < 0.5 else node[rng.choice(keys)])
    elif what == "add":
        node[rng.choice(("", "added", "../x", "/etc/passwd", "a\0b", "x" * 5000))] = _value(rng, node[key])
    else:
        node[key] = _value(rng, node[key])
    return f"{what} {where}[{key!r}]"[:200]


def _manifest(folder: Path, rng: random.Random) -> str:
    done: list[str] = []
    damage.edit_manifest(folder, lambda data: done.append(_alter(data, rng)))
    return done[0]


def _headers(folder: Path, rng: random.Random) -> str:
    name = f"tables/{rng.choice(list(TABLES))}.npy"
    content = bytearray((folder / name).read_bytes())
    header = int.from_bytes(content[8:10], "little") + 10
    position = rng.choice((rng.randrange(min(12, header)), rng.randrange(header)))
    content[position] = rng.choice((rng.randrange(256), ord(rng.choice("0123456789,()-'[] {}:<>|x"))))
    damage.put(folder / name, bytes(content))
    damage.rehash(folder, name)
    return f"byte {position} of {name} is {content[position]}"


def _tables(folder: Path, rng: random.Random) -> str:
    name = rng.choice(list(TABLES))
    done = ""

    def change(table: np.ndarray) -> np.ndarray:
        nonlocal done
        row, other = rng.randrange(len(table)), rng.randrange(len(table))
        what = rng.choice(("field", "field", "field", "field", "exchange", "double", "drop", "cut"))
        done = f"{what} entry {row}"
        if what == "field":
            field = rng.choice(TABLES[name].fields)
            old = int(np.ravel(table[field.name][row])[0])
            limits = np.iinfo(np.dtype(field.type))
            value = max(int(limits.min), min(int(limits.max), _number(rng, old)))
            if field.count > 1:
                table[field.name][row][rng.randrange(field.count)] = value
            else:
                table[field.name][row] = value
            done += f" {field.name} {old} -> {value}"
        elif what == "exchange":
            table[[row, other]] = table[[other, row]]
        elif what == "double":
            return np.insert(table, other, table[row])
        elif what == "drop":
            return np.delete(table, row)
        else:
            return table[:row]
        return table

    damage.edit_table(folder, name, change)
    return f"{name}: {done}"


def _text(folder: Path, rng: random.Random) -> str:
    path = folder / "tokenizer.json"
    if rng.random() < 0.5:
        data = json.loads(path.read_text())
        done = _alter(data, rng)
        damage.put(path, json.dumps(data).encode())
    else:
        content = path.read_bytes()
        position = rng.randrange(len(content))
        done = f"byte {position}"
        damage.flip(path, position, rng.randrange(1, 256))
    damage.rehash(folder, path.name)
    return done


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
        """What `attempt` says, or ("crash", signal) or ("hang", seconds)."""
        if self._process is None:
            command = [sys.executable, __file__]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
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
    """The outcomes of the cases with these seeds; a crash is tried again in a process of its own."""
    outcomes, server = [], Server()
    result, want = server.attempt(engine)
    assert result == "tokens", want
    try:
        for seed in seeds:
            folder = scratch / f"case{seed}"
            case = damaged(engine, folder, seed)
            result, detail = server.attempt(folder)
            if result == "crash":
                result, detail = server.attempt(folder)
            if result == "tokens":
                result = "same" if detail == want else "another"
            outcomes.append(Outcome(case, result, detail))
            if result not in ("crash", "hang", "error", "another"):
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
