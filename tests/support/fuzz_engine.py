"""Fuzzing of engine folders: damage drawn from a seed, and the outcome of loading and generating.

A case must end in a refusal (one line), in EngineStalled, or in the original tokens. It runs in a server process, so
that a crash is seen as one, and a hang as one. Kinds of cases:

    bytes     one byte altered, a file cut short, lengthened, removed, exchanged with another one or replaced by a
              folder, a link or a pipe; hashes as they were
    manifest  engine.json altered in its structure, with its own hash right again: schema and ranges are what refuses
    headers   one byte of a table's file altered, with hashes right again
    tables    entries of a table altered, with hashes right again
    text      the tokenizer altered, with hashes right again

The last two can make another engine, which loading accepts. What it can refuse are indices that lead
nowhere and addresses for which the kernel wasn't built (`contract.py`). A wrong schedule (waits,
order) passes; where it doesn't stall it may give other tokens, and to prove that it is right is the business
of `tilecompile verify`. Such cases are counted apart as "another", and the tests ask the verifier to reject them, as it
must those that stall. The hashes of an altered kernel are never mended: it is a program, and nothing can be said about
what another one does.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from support import damage
from tilecompile.runtime.format import TABLES

KINDS = ("bytes", "bytes", "manifest", "manifest", "headers", "tables", "tables", "tables", "text")
"""Kinds of cases, as often as they are drawn."""

NUMBERS = (0, 1, 2, 3, 7, 63, 255, 1 << 15, 65535, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 62, 1 << 63, 1 << 64)


def damaged(engine: Path, folder: Path, seed: int) -> str:
    """Makes a damaged copy of an engine in `folder`; returns what was done to it."""
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
    return f"{kind}: {makers[kind](folder, rng)}"


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
        if not len(table):
            return table
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
