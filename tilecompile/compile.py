"""From a model to an engine folder: the list of passes.

Each pass is one function in the module of its name, a value in and a value out. `Stages` runs them: it times each,
reports it as it begins, and writes its value to a file of `--dump DIR`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tilecompile.ops  # noqa: F401  (registers the tile ops)
from tilecompile.cost.capacity import check_fit, needs
from tilecompile.cost.placement_table import placement_table
from tilecompile.engine.folder import new_folder
from tilecompile.engine.kinds import kinds_of
from tilecompile.engine.listing import listing
from tilecompile.engine.plan import Plan, copies_of
from tilecompile.engine.stages import Stages
from tilecompile.engine.write import write_engine
from tilecompile.ir.program import graph_of
from tilecompile.models.registry import spec_of
from tilecompile.models.spec import ModelConfig
from tilecompile.options import CompileOptions, Settings
from tilecompile.passes.choose_steps import choose_steps
from tilecompile.passes.events import events
from tilecompile.passes.fuse import fuse
from tilecompile.passes.place.choose import DEFAULT_CONTEXT, Chosen, choose, sample
from tilecompile.passes.place.place import SEVERAL, place
from tilecompile.passes.place.split_over_workers import split_over_workers
from tilecompile.passes.repetition import KEPT, Repeat, agrees, shortened
from tilecompile.passes.schedule import schedule
from tilecompile.passes.tile import tile
from tilecompile.passes.trace import trace_program
from tilecompile.runtime.progress import Progress, silent
from tilecompile.schedules.auto import Choice
from tilecompile.sources import ModelSource, open_model
from tilecompile.verify.proof import Memory, Proof, verify


@dataclass(frozen=True)
class Compiled:
    """What a compilation made: the engine folder, its manifest's programs, notes for the user, seconds taken in all and
    by stage, and the proof."""

    output: Path
    programs: list[dict[str, Any]]
    notes: tuple[str, ...]
    seconds: float
    stages: dict[str, float]
    proof: Proof


def compile_model(options: CompileOptions, progress: Progress = silent) -> Compiled:
    """Compiles a model to the engine folder `options.output`.

    `progress(stage, done, total)` is called as stages begin, and with bytes while weights are packed. Raises InputError
    for anything wrong with the options, the model or the machine, and leaves nothing behind then.
    """
    stages = Stages(options.dump, progress)
    settings = options.resolve()
    source = stages.run("open", open_model, options, settings)  # configuration, weights, tokenizer
    chosen = choose_placement(source, settings, stages)  # only for placement `auto`
    recipe = chosen.choice if chosen else settings.placement
    source = choose_sizes(source, recipe, settings, stages)  # of steps, where the options leave them open
    plan = plan_repeated(source, recipe, settings, stages) or plan_whole(source, recipe, settings, stages)
    text = stages.run("listing", listing, plan)  # the instructions, for people
    proof = stages.run("verify", prove, plan)  # no deadlock, no race, each weight read once
    with new_folder(options.output, options.force) as folder:
        manifest = write_engine(folder, plan, text, source, settings, stages)  # emit, build, pack
    notes = (*source.notes, chosen.summary) if chosen else source.notes
    return Compiled(options.output, manifest["programs"], notes, stages.elapsed, dict(stages.seconds), proof)


def plan_repeated(source: ModelSource, recipe: Choice | str, settings: Settings, stages: Stages) -> Plan | None:
    """The plan of a model from a few of its layers, of which some are repeated; None where no layers repeat.

    Large models are for GPUs and are planned without weights; what has weights is planned whole.
    """
    if settings.machine.is_cpu or source.weights is not None:
        return None
    for kept in KEPT:
        if (short := shortened(source.config.layers, kept)) is None:
            return None
        layers, repeat = short
        plan = plan_graphs(source, source.config.with_layers(layers), recipe, settings, stages, repeat).expanded()
        if agrees(plan.program, plan.operators):
            return plan
    return None


def plan_whole(source: ModelSource, recipe: Choice | str, settings: Settings, stages: Stages) -> Plan:
    """The plan of a model from all of its layers."""
    return plan_graphs(source, source.config, recipe, settings, stages)


def plan_graphs(
    source: ModelSource,
    config: ModelConfig,
    recipe: Choice | str,
    settings: Settings,
    stages: Stages,
    repeat: Repeat | None = None,
) -> Plan:
    """The passes: the plan of a model's step programs. `config` is that of a short model where `repeat` says so."""
    machine, workers, storage, copies = settings.machine, settings.workers, source.storage, copies_of(repeat)
    # trace: the step modules to graphs of tile ops, by torch.export
    graphs = stages.each("trace", trace_program, source.programs, config, storage, source.steps)
    # fuse: norms into the matrices behind them, activations and residuals into those before them
    graphs = stages.each("fuse", fuse, graphs)
    # place: which device has which shard of an operator; exchanges between devices become operators
    placed = stages.each("place", place, graphs, recipe, settings.devices, settings.reduction)
    # split_over_workers: operators with fewer tasks than workers in parts (attention by selected positions)
    placed = stages.each("split_over_workers", split_over_workers, placed, workers)
    if settings.devices > 1:
        stages.show("placement_table", placement_table, placed)
    if not machine.is_cpu:
        # check_fit: refuses what exceeds a device's memory
        stages.run("check_fit", check_fit, needs(placed, copies), machine, storage.max_seq_len)
    # kinds: bodies specialised to shapes; refuses ops that the target has none for
    kinds = stages.run("kinds", kinds_of, placed, settings)
    # tile: operators to tasks, with the regions that they read and write and the weight tiles that they stream
    tiled = stages.each("tile", tile, placed, workers * settings.granularity, machine.layout)
    # events: dependencies between tasks, from regions that overlap
    plans = stages.each("events", events, tiled)
    # schedule: tasks to workers in a fixed order, buffers and weight tiles to places: the tables that a kernel executes
    program = stages.run("schedule", schedule, plans, workers, kinds.index, kinds.names, repeat)
    return Plan(graphs, placed, tiled, kinds, program, graph_of(plans), program, repeat)


def choose_placement(source: ModelSource, settings: Settings, stages: Stages) -> Chosen | None:
    """The placement `auto`, by the simulated time of a few layers; None for a placement that was named."""
    if settings.placement != "auto":
        return None
    layers = sample(source.config.layers)
    decode, config = source.programs[0], source.config.with_layers(layers)
    context = context_of(source, settings)
    cut = (settings.machine, settings.devices, settings.workers)

    def chosen() -> Chosen:
        graph = fuse(trace_program(decode, config, source.storage, source.steps))
        return choose(graph, len(layers), SEVERAL, *cut, context, stages.advance)

    return stages.run("choose", chosen)


def choose_sizes(source: ModelSource, recipe: Choice | str, settings: Settings, stages: Stages) -> ModelSource:
    """The source with sizes of steps by the machine's costs; as it is where they are given or the machine has none."""
    given = settings.drafts if spec_of(source.config).drafts(source.config) else 0
    if settings.machine.simulator is None or (given is not None and settings.prefill is not None):
        return source
    cut = (settings.machine, settings.devices, settings.workers, recipe, context_of(source, settings))
    chosen = stages.run(
        "choose_steps", choose_steps, source.config, source.storage, *cut, drafts=given, prefill=settings.prefill
    )
    notes = (*source.notes, f"by estimated time, {chosen.summary}")
    return replace(source, steps=chosen.steps, estimated=chosen.stated, notes=notes)


def context_of(source: ModelSource, settings: Settings) -> int:
    """The number of positions that choices are made for."""
    return settings.context or min(DEFAULT_CONTEXT, source.storage.max_seq_len)


def prove(plan: Plan) -> Proof:
    """The proof of a plan's tables. VerifyError names the tasks of a fault."""
    program, layers = plan.program, [node.layer for node in plan.operators.nodes]
    names, memory = [b.tensor.name for b in program.buffers], Memory(program.sizes())
    return verify(program.tables, program.operators, memory, names, program.weights, layers=layers)
