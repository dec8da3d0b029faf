"""The keys of engine.json and their types, as schemas of `validate`."""

from __future__ import annotations

from typing import Any

from tilecompile.runtime.format import FOLLOWERS, RECOMMENDED
from tilecompile.runtime.validate import MapOf

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
    "sampling": MapOf(float, RECOMMENDED),
    "weights": {"dtype": str, "source": str, "pools": [{"device": int, "file": (str, None), "bytes": int}]},
    "cache": str,
    "arenas": [{"device": int, "activation": int, "cache": int, "io": int}],
    "programs": [
        {
            "name": str,
            "tokens": int,
            "inputs": [str],
            "outputs": [str],
            "logit_rows": str,
            "drafts": bool,
            "io": {"logits": int, "next": int},
            **dict.fromkeys(FOLLOWERS, (str, None)),
            "tasks": int,
            "events": int,
            "edges": int,
            "bytes_per_step": int,
            "ops": MapOf(int),
        }
    ],
    "first_program": str,
    "kinds": [str],
    "operators": [str],
    "io": {"ids": int, "position": int},
    "scratch_bytes": int,
    "compile_seconds": float,
    "files": MapOf(({"bytes": int, "sha256": str}, {"bytes": int, "chunk_bytes": int, "chunks": [str]})),
    "manifest_sha256": str,
}
"""Keys of engine.json, as `validate` has schemas; other keys are kept."""

RESOURCES: dict[str, Any] = {
    "toolkit": str,
    "kernel": {"registers": int, "local": int, "spills": int, "shared": int, "dynamic_shared": int},
    "ring": {"slot_bytes": int, "slots": int},
    "kinds": [{"kind": str, "registers": int, "local": int, "spills": int, "shared": int}],
}
"""Key `resources` of engines for GPUs: the CUDA version that the kernel was built with, what it and each task kind take
(registers a thread; bytes of local memory and spills a thread; bytes of shared memory a block), and its weight ring."""
