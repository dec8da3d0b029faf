"""Peers: other ways to run the engine's model on this machine, measured in processes of their own.

Each runs transformers' model of the engine's configuration on the engine's weights (`model.py`), at its fastest
setting, which it finds by trying (`search.py`): on the CPU, or, where the engine is for GPUs, on one GPU in
bf16. Nothing of torch is imported into the caller's process.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from tilecompile.errors import InputError, TilecompileError
from tilecompile.measure.children import Child, module_command
from tilecompile.measure.peers.registry import BENCH, PEERS, absent
from tilecompile.measure.steps import window
from tilecompile.models.registry import NAMED, config_of, read_config, spec_of
from tilecompile.models.spec import ModelConfig
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.machine import usable_cores
from tilecompile.runtime.progress import Progress
from tilecompile.runtime.weight_formats import FORMATS


class PeerError(TilecompileError):
    """A peer can't run, or didn't finish; one line that names it and says why."""


def check(name: str) -> str | None:
    """Why a peer can't run here, in one line, or None. InputError for a name that is no peer's."""
    if name not in BENCH:
        raise InputError(f"peer {name!r} is unknown, want one of: {', '.join(BENCH)}")
    missing = absent(PEERS[name].needs)
    return f"not installed: {', '.join(missing)} (pip install 'tilecompile[bench]')" if missing else None


def device_of(manifest: Manifest) -> str:
    """Where the peers of an engine run, as torch calls it: "cpu" or "cuda"."""
    return "cuda" if str(manifest.data["target"]["name"]).startswith("sm_") else "cpu"


def dtype_of(manifest: Manifest) -> str:
    """The type that peers keep the engine's weights in: the engine's, or bf16 in the place of a quantised one."""
    return FORMATS[str(manifest.data["weights"]["dtype"])].exact


def check_device(name: str, manifest: Manifest) -> None:
    """Raises InputError for a peer that runs on GPUs only, beside an engine for a CPU."""
    if PEERS[name].gpu_only and device_of(manifest) != "cuda":
        target = manifest.data["target"]["name"]
        raise InputError(f"peer {name} runs on a GPU, and {manifest.folder} is for {target}")


def bench(
    name: str,
    *,
    engine_manifest: Manifest,
    model: str | None,
    context: int,
    threads: int,
    progress: Progress,
    prompt_tokens: int | None = None,
) -> dict[str, Any]:
    """Measures a peer's decode step at a context of `context` positions, in a fresh process.

    `model` is where the engine's weights came from: a checkpoint folder, or a named configuration whose weights were
    drawn (None: the engine says which). `progress` is called whenever the peer begins something. Returns

    - `name`, `version` (of its packages), `context` (of the middle step), `threads`, `device` (a GPU's name, or "cpu")
    - `ms_per_step`: median over `rounds` rounds of `steps` steps each; `spread`: [fastest, slowest] round, in ms
    - `settings`: those of the fastest, and `tried`: all that were tried, with their `ms_per_step` or why they `failed`
    - `prefill`, with `prompt_tokens` of a peer that isn't compiled: for each dtype of its activations the time in `ms`
      to read such a prompt from an empty cache, up to the last token's logits, and `settings`, those of the fastest
    - `load_seconds` and `warm_up_seconds`: to get the weights, and from the first call to steady steps (in a process
      that had compiled other settings before; `tilecompile warmup` measures fresh ones)

    PeerError if it can't run, InputError if model or context don't fit the engine.
    """
    if reason := check(name):
        raise PeerError(f"peer {name}: {reason}")
    check_device(name, engine_manifest)
    threads = threads or usable_cores()
    window(context, 1, engine_manifest.max_seq_len)
    job = {
        **dataclasses.asdict(BENCH[name]),
        **weights_job(engine_manifest, model),
        "context": context,
        "max_seq_len": engine_manifest.max_seq_len,
        "threads": threads,
        "device": device_of(engine_manifest),
        "prompt_tokens": prompt_tokens,
    }
    with tempfile.TemporaryDirectory(prefix="tilecompile-peer-") as folder:
        command = module_command("tilecompile.measure.peers.run", json.dumps(job))
        try:
            with Child(command, environment(threads, folder)) as child:
                for found in child.objects():
                    if "progress" in found:
                        progress(str(found["progress"]), 0, 1)
                    elif "error" in found:
                        raise PeerError(f"peer {name}: {found['error']}")
                    elif "result" in found:
                        return {"name": name, **found["result"]}
                raise PeerError(f"peer {name}: ended without a result: {child.ended()}")
        except OSError as error:
            raise PeerError(f"peer {name}: can't be started: {error.strerror or error}") from error


def environment(threads: int, compile_cache: str | Path) -> dict[str, str]:
    """What a peer's process gets beside the caller's environment: no network, its threads, its own compile cache."""
    return {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_CACHE_DIR": str(compile_cache),
    }


def weights_job(manifest: Manifest, model: str | None) -> dict[str, Any]:
    """Where a peer gets the engine's weights from, as JSON values: `config`, `dtype`, and `folder` or `seed`.

    InputError if the engine doesn't say and `model` doesn't either, or if `model` isn't the engine's.
    """
    data, path = manifest.data, manifest.folder
    config = read_config(data["model"]["config"], str(manifest.path))
    source = str(data["weights"]["source"])
    if model is not None:
        _check_model(model, config, path)
    job: dict[str, Any] = {"config": config.to_dict(), "dtype": dtype_of(manifest)}
    if source == "checkpoint":
        if model is None or model in NAMED:
            raise InputError(
                f"{path}: its weights come from a checkpoint, and peers need them too: give --model FOLDER"
            )
        return {**job, "folder": str(Path(model).absolute())}
    word, _, seed = source.partition(" ")
    if word != "seed" or not seed.isdecimal():
        raise InputError(f"{path}: its weights' source is {source!r}, want a checkpoint or a seed")
    return {**job, "seed": int(seed)}


def _check_model(model: str, config: ModelConfig, engine: Path) -> None:
    if model not in NAMED and not (Path(model) / "config.json").is_file():
        raise InputError(f"--model {model}: want a folder with config.json, or one of: {', '.join(NAMED)}")
    found = config_of(model)
    if found.architecture != config.architecture:
        raise InputError(f"--model {model}: is {found.architecture}, {engine} was compiled from {config.architecture}")
    same = spec_of(config).same_results | spec_of(config).chosen
    for field in (f.name for f in dataclasses.fields(config) if f.name not in same):
        have, want = getattr(found, field), getattr(config, field)
        if have != want:
            raise InputError(f"--model {model}: {field} is {have!r}, {engine} was compiled with {want!r}")
