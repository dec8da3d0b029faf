"""A peer's process: `python -m tilecompile.measure.peers.run JOB` prints progress and the result as JSON lines."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from tilecompile.errors import InputError, TilecompileError
from tilecompile.measure.children import report_stream

ROUNDS = 7
STEPS = 16


def main() -> None:
    """Runs the job in argv. A failure is reported as a JSON line with `error`."""
    stream = report_stream()

    def report(**values: Any) -> None:
        print(json.dumps(values), file=stream)

    try:
        report(result=measure(json.loads(sys.argv[1]), lambda text: report(progress=text)))
    except TilecompileError as error:
        report(error=str(error))
    except Exception as error:
        report(error=f"{type(error).__name__}: {error}".splitlines()[0])
    stream.flush()
    os._exit(0)  # compile workers need no goodbye


def measure(job: dict[str, Any], note: Any) -> dict[str, Any]:
    """The peer's fastest setting, measured: see `peers.bench`."""
    note("importing torch and transformers")
    import torch

    if job["device"] == "cuda" and not torch.cuda.is_available():
        raise InputError("torch has no GPU here")
    from tilecompile.measure.peers.model import need_gpu_memory, need_memory, open_weights, versions
    from tilecompile.measure.peers.prefill import read_prompts
    from tilecompile.measure.peers.search import Search
    from tilecompile.measure.steps import window

    torch.set_num_threads(job["threads"])
    contexts = window(job["context"], STEPS, job["max_seq_len"])
    if job["device"] == "cuda":
        need_gpu_memory(job)
    else:
        need_memory(job, copies=1.0 + 0.6 * (job["dtype"] != "f32"))
    search = Search(open_weights(job), job["dtype"], contexts, note, job["budget"], job["device"])
    with torch.inference_mode():
        getattr(search, job["search"])()
        best = search.measured(ROUNDS, STEPS)
        prompts = job["prompt_tokens"] and job["search"] == "eager"
        prefill = read_prompts(search, job["prompt_tokens"]) if prompts else []
    return {
        "ms_per_step": best.ms,
        "spread": [min(best.rounds), max(best.rounds)],
        "rounds": len(best.rounds),
        "steps": best.steps,
        "context": job["context"],
        "threads": job["threads"],
        "device": torch.cuda.get_device_name() if job["device"] == "cuda" else "cpu",
        "settings": {**best.tried.setting.shown(), "tried": [t.shown() for t in search.tried]},
        "prefill": prefill,
        "load_seconds": search.load_seconds,
        "warm_up_seconds": best.tried.warm_up_seconds,
        "version": versions(),
    }


if __name__ == "__main__":
    main()
