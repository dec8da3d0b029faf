"""describe: what an engine is, as engine.json states it."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np

from tilecompile.cost.graph_reads import reads
from tilecompile.engine.plan import Plan
from tilecompile.options import Settings
from tilecompile.runtime.format import FIRST_PROGRAM, LOOP_INPUTS, PROGRAMS, SAMPLING_INPUTS
from tilecompile.sources import ModelSource


def describe(plan: Plan, source: ModelSource, settings: Settings) -> dict[str, Any]:
    """The manifest's content, without files and times."""
    config, storage, program, programs = source.config, source.storage, plan.program, []
    tables, isa = program.tables, settings.isa
    op_of = np.array([node.op for node in plan.operators.nodes])
    for index, step in enumerate(plan.graphs):
        streams = tables["streams"][tables["streams"]["program"] == index]
        instructions = np.concatenate([tables["instructions"][s["begin"] : s["end"]] for s in streams])
        read = reads(step, storage.max_seq_len, plan.copies)
        ops, counts = np.unique(op_of[instructions["op"]], return_counts=True)
        programs.append(
            PROGRAMS[step.program].stated(step.tokens, program.programs, _inputs(step.tensors))
            | {
                "io": program.outputs[index],
                "tasks": len(instructions),
                "events": int((tables["events"]["program"] == index).sum()),
                "edges": int(instructions["wait_count"].sum()),
                "bytes_per_step": read.at(storage.max_seq_len),
                "reads": read.stated(),
                "ops": dict(zip(ops.tolist(), counts.tolist(), strict=True)),
            }
        )
    pools = [
        {"device": d, "file": f"weights/device{d}.bin" if source.weights else None, "bytes": size}
        for d, size in enumerate(program.pool_bytes)
    ]
    return {
        "model": {"name": source.name, "architecture": config.architecture, "config": config.to_dict()},
        "target": {
            "name": settings.target,
            "isa": isa.name if isa else settings.target,
            "features": list(isa.features if isa else ()),
        },
        "machine": settings.machine.name,
        "devices": settings.devices,
        "workers": settings.workers * settings.devices,
        "placement": settings.placement,
        "max_seq_len": storage.max_seq_len,
        "vocab_size": config.vocab_size,
        "eos_token_ids": sorted({*config.eos_token_id, *source.generation.stops}),
        "sampling": source.generation.defaults,
        "weights": {
            "dtype": storage.weights,
            "source": source.origin,
            "pools": pools,
            "tensors": program.weights,
        },
        "cache": storage.cache,
        "draft_head": storage.draft_head,
        "arenas": [{"device": d, **sizes} for d, sizes in enumerate(program.arena_bytes)],
        "programs": programs,
        "first_program": FIRST_PROGRAM,
        "estimated_steps": source.estimated,
        "kinds": program.kinds,
        "operators": program.operators,
        "buffers": [{"tensor": b.tensor.name, "shape": b.tensor.shape, "program": b.program} for b in program.buffers],
        "io": {name: program.io[name] for name in _inputs(program.io)},
        "scratch_bytes": program.scratch_bytes,
    }


def _inputs(names: Container[str]) -> list[str]:
    """Those of the loops' inputs that are among some tensors."""
    return [name for name in (*LOOP_INPUTS, *SAMPLING_INPUTS) if name in names]
