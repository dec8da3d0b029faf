"""What there is to measure, found out in a process of its own.

Called as `python -m tilecompile.measure.warmup.describe QUESTION`.

The question is JSON: `engine`, `model` (or null), `threads` (or null), `peers` (whether any needs the model as a
checkpoint), `checkpoint` (the folder to write it to, or null). So the process that measures neither imports torch nor
holds the model in memory.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from tilecompile.errors import InputError, TilecompileError
from tilecompile.measure.children import report_stream
from tilecompile.measure.peers import check, device_of, dtype_of, weights_job
from tilecompile.runtime.cuda.device import find_gpus
from tilecompile.runtime.folder.manifest import Manifest, read_manifest
from tilecompile.runtime.folder.runnable import check_cpu, check_runnable
from tilecompile.runtime.machine import cpu_name, usable_cores


def main() -> None:
    """Prints one line: `about`, or `error`."""
    stream = report_stream()
    try:
        answer: dict[str, Any] = {"about": describe(**json.loads(sys.argv[1]))}
    except TilecompileError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), file=stream, flush=True)


def describe(
    engine: str, model: str | None, threads: int | None, peers: bool, checkpoint: str | None
) -> dict[str, Any]:
    """Name, machine, device (as `peers.device_of`), threads, offline compile time, and the folder with the model's
    checkpoint.

    That is null if no peer needs it, or if it has to be written and no folder is given to write it to.
    """
    manifest = read_manifest(engine)
    check_runnable(manifest)
    device, where, chosen = device_of(manifest), cpu_name(), usable_cores()
    if device == "cuda":
        if threads is not None:
            raise InputError(f"threads is {threads}, want none: {engine} is an engine for GPUs")
        gpus = find_gpus(manifest, range(manifest.devices), manifest.devices)
        where = f"{', '.join(gpu.name for gpu in gpus)}, {where}"
    else:
        chosen = min(manifest.workers, chosen) if threads is None else threads
        if not 1 <= chosen <= manifest.workers:
            raise InputError(f"threads is {chosen}, want 1 to {manifest.workers} (the engine's workers)")
        check_cpu(manifest, chosen)
    if manifest.max_seq_len < 8:
        raise InputError(f"{engine}: max_seq_len is {manifest.max_seq_len}, want 8 at least")
    if model is not None:
        weights_job(manifest, model)  # a wrong model is refused, whoever needs it
    data = manifest.data
    return {
        "model": data["model"]["name"],
        "weights": data["weights"]["dtype"],
        "dtype": dtype_of(manifest),
        "device": device,
        "weight_bytes": sum(int(pool["bytes"]) for pool in manifest.pools),
        "compile_seconds": data["compile_seconds"],
        "vocab_size": manifest.vocab_size,
        "threads": chosen,
        "machine": where,
        "cores": usable_cores(),
        "checkpoint": _checkpoint(manifest, model, checkpoint) if peers else None,
    }


def _checkpoint(manifest: Manifest, model: str | None, folder: str | None) -> str | None:
    """The folder with the checkpoint: the user's, or `folder`, filled with the weights that the engine drew."""
    job = weights_job(manifest, model)
    if "folder" in job:
        return str(job["folder"])
    if reason := check("transformers"):
        raise InputError(f"{manifest.folder}: its weights were drawn, and writing them for peers needs more: {reason}")
    if folder is None:
        return None
    size, free = sum(int(pool["bytes"]) for pool in manifest.pools), shutil.disk_usage(folder).free
    if size > free:
        raise InputError(f"{folder}: peers need the weights as a checkpoint of {size} bytes, the disk has {free} free")
    from tilecompile.measure.peers.model import DTYPES, build, need_memory, open_weights

    need_memory(job, copies=0.6 if job["dtype"] == "bf16" else 1.1)
    stored = DTYPES[job["dtype"]]
    build(open_weights(job), stored, stored).save_pretrained(Path(folder))
    return folder


if __name__ == "__main__":
    main()
