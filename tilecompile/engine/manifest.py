"""describe: what an engine is, as engine.json states it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilecompile.cost.traffic import Reads
from tilecompile.ir.graph import OpGraph
from tilecompile.ir.program import EngineGraph, Program
from tilecompile.options import Settings
from tilecompile.sources import ModelSource


def describe(
    settings: Settings,
    source: ModelSource,
    weights: str,
    max_seq_len: int,
    program: Program,
    graphs: Sequence[OpGraph],
    operators: EngineGraph,
    formulas: Sequence[Reads],
) -> dict[str, object]:
    """The manifest's content, without files and times.

    `operators` are those of the whole program, in the order of `Instruction.op`; `formulas` have what a step of each
    step program must read.
    """
    config, tables, programs = source.config, program.tables, []
    op_of = np.array([node.op for node in operators.nodes])
    isa = settings.isa
    for index, (step, read) in enumerate(zip(graphs, formulas, strict=True)):
        streams = tables["streams"][tables["streams"]["program"] == index]
        instructions = np.concatenate([tables["instructions"][s["begin"] : s["end"]] for s in streams])
        ops, counts = np.unique(op_of[instructions["op"]], return_counts=True)
        programs.append(
            {
                "name": step.program,
                "tokens": step.tokens,
                "tasks": len(instructions),
                "events": int((tables["events"]["program"] == index).sum()),
                "edges": int(instructions["wait_count"].sum()),
                "bytes_per_step": read.at(max_seq_len),
                "reads": read.stated(),
                "ops": dict(zip(ops.tolist(), counts.tolist(), strict=True)),
            }
        )
    pools = [
        {"device": d, "file": f"weights/device{d}.bin" if source.weights else None, "bytes": size}
        for d, size in enumerate(program.pool_bytes)
    ]
    return {
        "model": {"name": source.name, "architecture": "GlmMoeDsaForCausalLM", "config": config.to_dict()},
        "target": {
            "name": settings.target,
            "isa": isa.name if isa else settings.target,
            "features": list(isa.features if isa else ()),
        },
        "machine": settings.machine.name,
        "devices": settings.devices,
        "workers": settings.workers * settings.devices,
        "placement": settings.placement,
        "max_seq_len": max_seq_len,
        "vocab_size": config.vocab_size,
        "eos_token_ids": list(config.eos_token_id),
        "weights": {
            "dtype": weights,
            "source": source.origin,
            "pools": pools,
            "tensors": program.weights,
        },
        "cache": settings.cache,
        "arenas": [{"device": d, **sizes} for d, sizes in enumerate(program.arena_bytes)],
        "programs": programs,
        "kinds": program.kinds,
        "operators": program.operators,
        "buffers": [{"tensor": b.tensor.name, "shape": b.tensor.shape, "program": b.program} for b in program.buffers],
        "io": {name: program.io[name] for name in ("ids", "position", "next", "logits")},
        "scratch_bytes": program.scratch_bytes,
    }
