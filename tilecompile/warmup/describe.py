"""What there is to measure, found out in a process of its own: `python -m tilecompile.warmup.describe QUESTION`.

The question is JSON: `engine`, `model` (or null), `threads` (or null), `checkpoint` (the folder where peers find the
model, made there if the engine's weights were drawn; null if nobody needs it). So the process that measures neither
imports numpy and torch nor holds the model in memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tilecompile.children import report_stream
from tilecompile.errors import InputError, TilecompileError


def main() -> None:
    """Prints one line: `about`, or `error`."""
    stream = report_stream()
    try:
        answer: dict[str, Any] = {"about": describe(**json.loads(sys.argv[1]))}
    except TilecompileError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), file=stream, flush=True)


def describe(engine: str, model: str | None, threads: int | None, checkpoint: str | None) -> dict[str, Any]:
    """Name, machine, threads, offline compile time, and the folder with the model's checkpoint."""
    from tilecompile.runtime.machine import cpu_name, usable_cores
    from tilecompile.runtime.manifest import read_manifest
    from tilecompile.runtime.runnable import check_runnable

    manifest = read_manifest(engine)
    chosen = min(manifest.workers, usable_cores()) if threads is None else threads
    if not 1 <= chosen <= manifest.workers:
        raise InputError(f"threads is {chosen}, want 1 to {manifest.workers} (the engine's workers)")
    check_runnable(manifest, chosen)
    if manifest.max_seq_len < 8:
        raise InputError(f"{engine}: max_seq_len is {manifest.max_seq_len}, want 8 at least")
    data = manifest.data
    return {
        "model": data["model"]["name"],
        "weights": data["weights"]["dtype"],
        "weight_bytes": sum(int(pool["bytes"]) for pool in manifest.pools),
        "compile_seconds": data["compile_seconds"],
        "vocab_size": manifest.vocab_size,
        "threads": chosen,
        "machine": cpu_name(),
        "cores": usable_cores(),
        "checkpoint": _checkpoint(manifest, model, checkpoint),
    }


def _checkpoint(manifest: Any, model: str | None, folder: str | None) -> str | None:
    """The folder with the checkpoint: the user's, or `folder`, filled with the weights that the engine drew."""
    if folder is None:
        return None
    from tilecompile.peers import check, weights_job

    job = weights_job(manifest, model)
    if "folder" in job:
        return str(job["folder"])
    if reason := check("transformers"):
        raise InputError(f"{manifest.folder}: its weights were drawn, and writing them for peers needs more: {reason}")
    from tilecompile.peers.model import DTYPES, build, need_memory, open_weights

    need_memory(job, copies=0.6 if job["dtype"] == "bf16" else 1.1)
    stored = DTYPES[job["dtype"]]
    build(open_weights(job), stored, stored).save_pretrained(Path(folder))
    return folder


if __name__ == "__main__":
    main()
