"""The keys of engine.json and their types."""

from __future__ import annotations

import json
from typing import Any


class MapOf:
    """Schema of a JSON object with any keys, whose values all have one schema."""

    def __init__(self, values: Any) -> None:
        self.values = values


MAX_INT = (1 << 63) - 1
"""Largest whole number: sums of a few stay within 64 bits."""

SCHEMA: dict[str, Any] = {
    "format": int,
    "tilecompile": str,
    "model": {"name": str, "architecture": str, "config": dict},
    "target": {"name": str, "isa": str, "features": [str]},
    "machine": str,
    "devices": int,
    "workers": int,
    "placement": str,
    "max_seq_len": int,
    "vocab_size": int,
    "eos_token_ids": [int],
    "weights": {"dtype": str, "source": str, "pools": [{"device": int, "file": (str, None), "bytes": int}]},
    "cache": str,
    "arenas": [{"device": int, "activation": int, "cache": int, "io": int}],
    "programs": [
        {
            "name": str,
            "tokens": int,
            "tasks": int,
            "events": int,
            "edges": int,
            "bytes_per_step": int,
            "ops": MapOf(int),
        }
    ],
    "kinds": [str],
    "operators": [str],
    "io": {"ids": int, "position": int, "next": int, "logits": int},
    "scratch_bytes": int,
    "compile_seconds": float,
    "files": MapOf(({"bytes": int, "sha256": str}, {"bytes": int, "chunk_bytes": int, "chunks": [str]})),
    "manifest_sha256": str,
}
"""Keys of engine.json. int: a whole number from 0 to MAX_INT; float: any number; tuple: one of these; other keys are
kept."""

RESOURCES: dict[str, Any] = {
    "toolkit": str,
    "kernel": {"registers": int, "local": int, "spills": int, "shared": int, "dynamic_shared": int},
    "ring": {"slot_bytes": int, "slots": int},
    "kinds": [{"kind": str, "registers": int, "local": int, "spills": int, "shared": int}],
}
"""Key `resources` of engines for GPUs: the CUDA version that the kernel was built with, what it and each task kind take
(registers a thread; bytes of local memory and spills a thread; bytes of shared memory a block), and its weight ring."""

_NAMES = {int: "a whole number from 0", float: "a number", str: "a string", dict: "an object", None: "null"}


def _describe(schema: Any) -> str:
    if isinstance(schema, tuple):
        return " or ".join(_describe(s) for s in schema)
    if isinstance(schema, dict):
        return f"an object with {', '.join(schema)}"
    if isinstance(schema, MapOf):
        return "an object"
    return "a list" if isinstance(schema, list) else _NAMES[schema]


def mismatch(value: Any, schema: Any, path: str) -> str | None:
    """The first place where a value doesn't follow a schema, as "KEY is VALUE, want …", or None."""
    wrong = f"{path or 'the content'} is {json.dumps(value)[:80]}, want {_describe(schema)}"
    if isinstance(schema, tuple):
        return wrong if all(mismatch(value, s, path) for s in schema) else None
    if isinstance(schema, list):
        if not isinstance(value, list):
            return wrong
        inner = [(item, schema[0], f"{path}[{i}]") for i, item in enumerate(value)]
    elif isinstance(schema, MapOf):
        if not isinstance(value, dict):
            return wrong
        inner = [(item, schema.values, f"{path}[{json.dumps(key)}]") for key, item in value.items()]
    elif isinstance(schema, dict):
        if not isinstance(value, dict):
            return wrong
        for key in schema:
            if key not in value:
                return f"{f'{path}.' if path else ''}{key} is missing, want {_describe(schema[key])}"
        inner = [(value[key], schema[key], f"{path}.{key}".lstrip(".")) for key in schema]
    elif schema is int:
        return None if type(value) is int and 0 <= value <= MAX_INT else wrong
    elif schema is float:
        return None if isinstance(value, (int, float)) and not isinstance(value, bool) else wrong
    else:
        return None if isinstance(value, type(None) if schema is None else schema) else wrong
    return next((found for args in inner if (found := mismatch(*args))), None)
