"""What `prepare.py` compiles: engines, other builds of their kernels, the CPU engine's results, simulated steps."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpu.kernels import HERE, SHARED_BYTES, built, entry
from tilecompile.compile import CompileOptions, compile_model
from tilecompile.cost.simulate.report import figures
from tilecompile.errors import InputError
from tilecompile.measure.simulated.plans import plan_of
from tilecompile.models.registry import NAMED
from tilecompile.runtime.folder.manifest import Manifest, read_manifest
from tilecompile.runtime.load import load
from tilecompile.schedules.machine import load_machine

Json = dict[str, Any]
Progress = Callable[[str], None]

ROOT = HERE.parents[1]
TINY = ROOT / "examples" / "tiny-glm5"
POSITIONS = 1000
"""Positions of the text that the tiny checkpoint is fed with."""
TIMES = 4
"""Steps whose timestamps a build with TC_TIMES keeps."""
CONTEXTS = (1024, 16384, 131072)
"""Contexts at which one device's shard of GLM-5 is measured."""
MINI_CONTEXTS = (512, 4000)
RESERVE = 4_000_000_000
"""Bytes of a GPU that are not planned with: the driver's, the kernel's tables, those of the measurements."""
ENDS = (4, 10)
"""Layers of two short plans, whose difference is what a layer takes."""


def compiled(model: str | Path, output: Path, **options: Any) -> Manifest:
    """Compiles a model; returns the engine's manifest."""
    compile_model(CompileOptions(str(model), output, **options))
    return read_manifest(output)


def other_builds(engine: Path, architecture: str, files: Path, shared: int = SHARED_BYTES) -> Json:
    """Builds an engine's kernel with timestamps, and its bodies as `run_tasks`; returns the names of the cubins."""
    source = (engine / "kernel.cu").read_text()
    timed = built("kernel with TC_TIMES", f"#define TC_TIMES {TIMES}\n{source}", architecture, shared)
    single = "\n".join(
        [source, (HERE / "tasks.cuh").read_text(), entry("run_tasks", "TaskLaunch", "one_task<tc::Bodies>")]
    )
    names = {"times": f"{engine.name}.times.cubin", "tasks": f"{engine.name}.tasks.cubin"}
    (files / names["times"]).write_bytes(timed)
    (files / names["tasks"]).write_bytes(built("run_tasks", single, architecture, shared))
    return {**names, "times_rows": TIMES, "shared": shared}


def text_of(vocab: int, count: int) -> list[int]:
    """Ids that the tiny checkpoint is fed with: its own tokenizer's, of this repository's README, over and over."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode((ROOT / "README.md").read_text()).ids
    assert max(ids) < vocab
    return (ids * (1 + count // len(ids)))[:count]


def results(files: Path, model: Path, ids: list[int], max_seq_len: int, **options: Any) -> Json:
    """What a CPU engine with weights and caches in bf16 computes for a text; returns the names of the files.

    That engine is beside `files`, not in it.
    """
    folder = files.parent / "cpu"
    compiled(model, folder, weights="bf16", cache="bf16", max_seq_len=max_seq_len, target="cpu", workers=2, **options)
    with load(folder) as engine:
        logits = engine.score(ids)
        generated = engine.generate(ids[:16], 32).tokens
        engine.selections(ids).save(files / "tiny.selections.npz")
    np.savez_compressed(files / "tiny.npz", ids=ids, generated=generated, logits=logits)
    return {"results": "tiny.npz", "selections": "tiny.selections.npz"}


def tiny(files: Path, progress: Progress) -> Json:
    """The tiny checkpoint for one device and for 8 of 16 workers, and what a CPU engine computes for a text.

    Both have weights and caches in bf16, so that what differs is the activations' rounding and the order of sums.
    """
    made: Json = {"engines": {}}
    for devices, workers in ((1, 132), (8, 16)):
        progress(f"tiny-glm5 for {devices} device(s) of {workers} workers")
        name = f"tiny{devices}"
        options = {"target": "sm_90a", "devices": devices, "workers": workers, "max_seq_len": POSITIONS + 24}
        manifest = compiled(TINY, files / name, weights="bf16", cache="bf16", **options)
        made["engines"][name] = {"devices": devices}
    progress("the CPU engine's results")
    ids = text_of(manifest.vocab_size, POSITIONS)
    return {**made, **results(files, TINY, ids, POSITIONS + 24)}


def predicted(engine: Path, machine: str, contexts: Sequence[int]) -> list[Json]:
    """Simulated steps of an engine: ms, bytes that a device must read (its even part) and does read, by context."""
    plan, described = plan_of(engine), load_machine(machine)
    found = []
    for context in contexts:
        step = plan.step(described, context)
        about = figures(step, plan.manifest, described, context)
        bytes_of = {"bytes": about["bytes"] / plan.manifest.devices, "bytes_read": float(step.times.read[0])}
        kept = {name: about[name] for name in ("step_ms", "roof_fraction", "causes", "calibrated")}
        found.append({"context": context, "machine": machine, **bytes_of, **kept})
    return found


def glm5_config(layers: int | None, folder: Path) -> Path:
    """A folder with the configuration of GLM-5 without its MTP layer, of so many layers (None: all)."""
    config = NAMED["glm-5"]
    layers = layers or config.num_hidden_layers
    values = dataclasses.replace(
        config,
        num_hidden_layers=layers,
        num_nextn_predict_layers=0,
        indexer_types=config.indexer_types[:layers],
        mlp_layer_types=config.mlp_layer_types[:layers],
    ).to_dict()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def device_bytes(manifest: Manifest) -> int:
    """Bytes that one device takes: weights, caches, activations."""
    arenas = max(sum(int(a[key]) for key in ("activation", "cache", "io")) for a in manifest.arenas)
    return arenas + max(int(pool["bytes"]) for pool in manifest.pools)


def fitting_layers(machine: str, folder: Path, **options: Any) -> tuple[int, float]:
    """How many layers of GLM-5 a device of a machine holds, and the bytes of a sparse layer with its caches.

    Both from two short plans' own counts. InputError if the machine states no memory.
    """
    sizes = []
    for layers in ENDS:
        model = glm5_config(layers, folder / f"glm5-{layers}")
        manifest = compiled(model, folder / f"plan{layers}", machine=machine, no_kernel=True, **options)
        sizes.append(device_bytes(manifest))
    each = (sizes[1] - sizes[0]) / (ENDS[1] - ENDS[0])
    memory = load_machine(machine).memory_bytes
    if memory is None:
        raise InputError(f"machine {machine} states no memory")
    return min(NAMED["glm-5"].num_hidden_layers, int(ENDS[0] + (memory - RESERVE - sizes[0]) // each)), each


def glm5(files: Path, machine: str, progress: Progress) -> Json:
    """GLM-5 in fp8 for 8 GPUs of a machine, tensor parallel: all layers that one of them holds; and its predictions."""
    options: Json = {"weights": "fp8", "no_weights": True, "placement": "tensor_parallel", "max_seq_len": CONTEXTS[-1]}
    work = files.parent / "glm5"
    progress(f"how many layers of GLM-5 a GPU of {machine} holds")
    layers, each = fitting_layers(machine, work / machine, **options)
    progress(f"{layers} layers of GLM-5 for {machine}")
    name = f"glm5-{machine}"
    manifest = compiled(
        glm5_config(layers, work / f"glm5-{layers}-{machine}"), files / name, machine=machine, **options
    )
    progress(f"kernels and predictions of {name}")
    return {
        "engine": name,
        "layers": layers,
        "of_layers": NAMED["glm-5"].num_hidden_layers,
        "layer_bytes": each,
        "device_bytes": device_bytes(manifest),
        "predicted": predicted(files / name, machine, CONTEXTS),
        **other_builds(files / name, "sm_90a", files),
    }


def mini(files: Path, machine: str, progress: Progress) -> Json:
    """glm5-mini in bf16 for one GPU of a machine."""
    name = f"mini-{machine}"
    progress(name)
    manifest = compiled("glm5-mini", files / name, machine=machine, weights="bf16", no_weights=True, max_seq_len=4096)
    return {
        "engine": name,
        "device_bytes": device_bytes(manifest),
        "predicted": predicted(files / name, machine, MINI_CONTEXTS),
        **other_builds(files / name, "sm_90a", files),
    }
