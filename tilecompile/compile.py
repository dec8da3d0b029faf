"""From a model to an engine folder: the pipeline, one named pass after the other.

    models/glm5.py → trace → fuse → place → split_attention → tile → events → schedule → verify → emit → build → pack

Each pass is one function in the module of its name; its value can be printed, and `--dump DIR` writes them all.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

import tilecompile.ops  # noqa: F401  (registers the tile ops)
from tilecompile.cost.capacity import check_fit, needs
from tilecompile.cost.graph_reads import reads
from tilecompile.cost.placement_table import placement_table
from tilecompile.engine.dump import Dump
from tilecompile.engine.folder import new_folder
from tilecompile.engine.graph_json import write_graph
from tilecompile.engine.kernels import check_bodies, kinds_of, write_kernel
from tilecompile.engine.listing import listing
from tilecompile.engine.manifest import describe
from tilecompile.engine.placement_json import write_placement
from tilecompile.engine.weights import pack
from tilecompile.errors import InputError
from tilecompile.ir.graph import OpGraph
from tilecompile.ir.program import Program, graph_of
from tilecompile.models.config import Glm5Config
from tilecompile.models.glm5 import Glm5Step
from tilecompile.models.mtp import MtpStep
from tilecompile.ops.commit import COMMIT
from tilecompile.ops.dtypes import TORCH_DTYPES
from tilecompile.options import CompileOptions, Settings
from tilecompile.passes.events import events
from tilecompile.passes.fuse import fuse
from tilecompile.passes.place.choose import DEFAULT_CONTEXT, Chosen, choose
from tilecompile.passes.place.place import RECIPES, place
from tilecompile.passes.place.split_attention import split_attention
from tilecompile.passes.repetition import KEPT, agrees, shortened, whole_graph, whole_placed, whole_program
from tilecompile.passes.schedule import schedule
from tilecompile.passes.tile import tile
from tilecompile.passes.trace import trace
from tilecompile.runtime.folder.contract import contract
from tilecompile.runtime.folder.manifest import TOKENIZER, write_manifest
from tilecompile.schedules.auto import Choice
from tilecompile.sources import ModelSource, open_model
from tilecompile.verify.proof import Memory, Proof, verify

DEFAULT_MAX_SEQ_LEN = 4096

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Compiled:
    """What a compilation made: the engine folder, its manifest's programs, notes for the user, seconds taken, proof."""

    output: Path
    programs: list[dict[str, object]]
    notes: tuple[str, ...]
    seconds: float
    proof: Proof


def compile_model(options: CompileOptions, progress: Progress = lambda stage, done, total: None) -> Compiled:
    """Compiles a model to the engine folder `options.output`.

    `progress(stage, done, total)` is told of each stage, and of bytes while packing. Raises InputError for anything
    wrong with the options, the model or the machine; then nothing is left behind.
    """
    start = time.perf_counter()
    settings = options.resolve()
    progress("open", 0, 1)
    source = open_model(options)
    weights, takes = options.weights or source.config.weight_type, settings.machine.weight_types
    if weights not in takes:
        raise InputError(f"weights are {weights}, and machine {settings.machine.name} takes {', '.join(takes)}")
    max_seq_len = sequence_length(source.config, options)
    dump = Dump(options.dump)
    how_traced = (max_seq_len, TORCH_DTYPES[settings.cache], TORCH_DTYPES[weights])

    def traced(config: Glm5Config, progress: Progress = lambda stage, done, total: None) -> list[OpGraph]:
        return trace_programs(config, *how_traced, progress, options.tokens)

    how: str | Choice = settings.placement
    notes, chosen = source.notes, None
    if how == "auto":
        chosen = _choose(source.config, lambda config: fuse(traced(config)[0]), settings, max_seq_len, progress)
        how, notes = chosen.choice, (*notes, chosen.summary)
    # Large models, of which a few layers tell all, are for GPUs, and have no weights.
    whole = settings.machine.is_cpu or source.weights is not None
    models = [] if whole else [shortened(source.config, kept) for kept in KEPT]
    for config, repeat in [*models, (source.config, None)]:
        dump.begin()
        copies = repeat.copies if repeat else lambda layer: 1
        graphs = [dump.add("trace", g) for g in traced(config, progress)]
        graphs = [dump.add("fuse", fuse(g)) for g in graphs]
        if chosen is not None:
            dump.add("place", chosen)
        placed = [place(g, how, settings.devices, settings.reduction) for g in graphs]
        placed = [dump.add("place", split_attention(p, settings.workers)) for p in placed]
        if settings.devices > 1:
            for p in placed:
                dump.add("place", placement_table(p))
        if not settings.machine.is_cpu:
            check_fit(needs(placed, copies), settings.machine, max_seq_len)
        nodes = {(p.graph.program, n.name): n for p in placed for n in p.graph.nodes}
        if not options.no_kernel:
            check_bodies(nodes.values(), settings)
        progress("tile", 0, 1)
        parts, layout = settings.workers * settings.granularity, settings.machine.layout
        tiled = [dump.add("tile", tile(p, parts, layout)) for p in placed]
        progress("events", 0, 1)
        plans = [dump.add("events", events(t)) for t in tiled]
        kinds = kinds_of(nodes, settings, not options.no_kernel)
        kind_of = dict.fromkeys(nodes, 0) | {label: kind.index for label, kind in kinds.of_node.items()}
        progress("schedule", 0, 1)
        names = [COMMIT.name, *(k.function for k in kinds.kinds)]
        short = program = schedule(plans, settings.workers, kind_of, names, repeat)
        operators = graph_of(plans)
        if repeat is None:
            break
        program, operators = whole_program(short, repeat, operators), whole_graph(operators, repeat, short)
        placed = [whole_placed(p, repeat, operators) for p in placed]
        if agrees(program, operators):
            break
    text = listing(short.tables, short.programs, short.operators, short.kinds, short.buffers)
    if repeat is not None:
        text = f"short: layers {repeat.layer} to {repeat.layer + repeat.layers - 1} stand {repeat.times} times\n{text}"
    dump.add("schedule", text)
    progress("verify", 0, 1)
    names = [b.tensor.name for b in program.buffers]
    layers = [node.layer for node in operators.nodes]
    memory = Memory(program.sizes())
    proof = verify(program.tables, program.operators, memory, names, program.weights, layers=layers)
    dump.add("verify", proof)
    formulas = [reads(g, max_seq_len, copies) for g in graphs]
    manifest = describe(settings, source, weights, max_seq_len, program, graphs, operators, formulas)
    with new_folder(options.output, options.force) as folder:
        if not options.no_kernel:
            progress("build", 0, 1)
            terms = contract(manifest, program.tables)
            manifest |= write_kernel(folder, kinds, tiled, settings, source.name, terms, dump)
        (folder / "listing.txt").write_text(text)
        write_graph(folder, operators)
        write_placement(folder, placed)
        (folder / "tables").mkdir()
        for name, table in short.tables.items():
            np.save(folder / "tables" / f"{name}.npy", table, allow_pickle=False)
        if source.tokenizer:
            shutil.copyfile(source.tokenizer, folder / TOKENIZER)
        files = pack_pools(program, graphs, source, folder, progress)
        seconds = time.perf_counter() - start
        write_manifest(folder, {**manifest, "files": files, "compile_seconds": round(seconds, 3)})
        dump.add("pack", pack_text(short))
    return Compiled(options.output, manifest["programs"], notes, seconds, proof)  # type: ignore[arg-type]


def _choose(
    config: Glm5Config,
    graph_of: Callable[[Glm5Config], OpGraph],
    settings: Settings,
    max_seq_len: int,
    progress: Progress,
) -> Chosen:
    """The placement by time, for the context that is asked for."""
    context = settings.context or min(DEFAULT_CONTEXT, max_seq_len)
    if context > max_seq_len:
        raise InputError(f"--context is {context}, the engine holds {max_seq_len} positions")
    recipes = {name: recipe for name, recipe in RECIPES.items() if name != "single"}
    machine, devices, workers = settings.machine, settings.devices, settings.workers
    return choose(config, graph_of, recipes, machine, devices, workers, context, partial(progress, "choose"))


def trace_programs(
    config: Glm5Config, max_seq_len: int, cache: torch.dtype, weights: torch.dtype, progress: Progress, tokens: int = 1
) -> list[OpGraph]:
    """The step programs of a model: decode, of so many tokens, and draft, of one, if it has an MTP layer."""
    steps: list[tuple[str, type[Glm5Step] | type[MtpStep]]] = [("decode", Glm5Step)]
    if config.mtp_layer is not None:
        steps.append(("draft", MtpStep))
    graphs = []
    for i, (name, step) in enumerate(steps):
        progress("trace", i, len(steps))
        several = tokens if step is Glm5Step else 1
        ids, position = torch.zeros(several, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        inputs = {"ids": ids, "position": position}
        if step is MtpStep:
            inputs = {"ids": ids, "hidden": torch.zeros(1, config.hidden_size), "position": position}
        with torch.device("meta"):
            module = step(config, max_seq_len, several, cache, weights)
        args = tuple(t.to("meta") for t in inputs.values())
        outputs = ("logits", "next") if name == "decode" else ("logits", "hidden")
        graphs.append(trace(module, args, tuple(inputs), outputs, name))
    return graphs


def sequence_length(config: Glm5Config, options: CompileOptions) -> int:
    """Positions that the caches hold."""
    limit = config.max_position_embeddings
    if options.max_seq_len is None:
        return min(limit, DEFAULT_MAX_SEQ_LEN)
    if options.max_seq_len > limit:
        raise InputError(f"--max-seq-len is {options.max_seq_len}, the model's positions end at {limit}")
    return options.max_seq_len


def pack_pools(
    program: Program, graphs: list[OpGraph], source: ModelSource, folder: Path, progress: Progress
) -> dict[str, dict[str, object]]:
    """Writes the pool of each device; returns the files' manifest entries. Nothing with --no-weights."""
    if source.weights is None:
        return {}
    total = sum(program.pool_bytes)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise InputError(f"{folder.parent}: weights need {total} bytes, the disk has {free} free (see --no-weights)")
    tensors = {n: t for g in graphs for n, t in g.tensors.items() if t.role == "weight"}
    (folder / "weights").mkdir()
    files = {}
    for device in range(len(program.pool_bytes)):
        name = f"weights/device{device}.bin"
        report = partial(_report, progress, sum(program.pool_bytes[:device]), total)
        files[name] = pack(program, device, tensors, source.weights, folder / name, report)
    return files


def _report(progress: Progress, before: int, total: int, done: int) -> None:
    progress("pack", before + done, total)


def pack_text(program: Program) -> str:
    """Where every weight tile lies, in pool order."""
    lines = [f"pools: {', '.join(f'device {d} {size} bytes' for d, size in enumerate(program.pool_bytes))}"]
    for p in sorted(program.tiles, key=lambda p: (p.device, p.offset)):
        t = p.tile
        copies = f" x {p.copies} experts" if t.gathered else ""
        lines.append(
            f"  device {p.device} +{p.offset} {p.bytes} B{copies}  tile {p.index}: {' + '.join(t.tensors)} "
            f"rows {t.row_begin}:{t.row_end}{'' if t.gathered else f' of matrices {t.begin}:{t.end}'}"
        )
    return "\n".join(lines) + "\n"
