"""Writes an engine folder: kernel, tables, graph, placement, weights, tokenizer, chat templates, the manifest last."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tilecompile.engine.graph_json import write_graph
from tilecompile.engine.kernels import write_kernel
from tilecompile.engine.manifest import describe
from tilecompile.engine.placement_json import write_placement
from tilecompile.engine.plan import Plan
from tilecompile.engine.stages import Stages
from tilecompile.engine.weights import pack_pools, pack_text
from tilecompile.options import Settings
from tilecompile.runtime.chat import CHAT
from tilecompile.runtime.folder.contract import contract
from tilecompile.runtime.folder.manifest import TOKENIZER, write_manifest
from tilecompile.sources import ModelSource


def write_engine(
    folder: Path, plan: Plan, listing: str, source: ModelSource, settings: Settings, stages: Stages
) -> dict[str, Any]:
    """Writes the engine of a proved plan into an empty folder; returns what the manifest says.

    InputError where the kernel can't be built, or the disk hasn't room for the weights.
    """
    manifest = describe(plan, source, settings)
    if settings.kernel:
        manifest |= write_kernel(folder, plan, settings, source.name, contract(manifest, plan.program.tables), stages)
    (folder / "listing.txt").write_text(listing)
    write_graph(folder, plan.operators)
    write_placement(folder, plan.placed)
    (folder / "tables").mkdir()
    for name, table in plan.stored.tables.items():
        np.save(folder / "tables" / f"{name}.npy", table, allow_pickle=False)
    if source.tokenizer:
        shutil.copyfile(source.tokenizer, folder / TOKENIZER)
    if source.chat:
        (folder / CHAT).write_text(json.dumps(source.chat, indent=1) + "\n")
    manifest["files"] = {}
    if source.weights is not None:
        manifest["files"] = stages.run("pack", pack_pools, plan, source.weights, folder, stages.advance)
    manifest["compile_seconds"] = round(stages.elapsed, 3)
    write_manifest(folder, manifest)
    stages.show("pack_text", pack_text, [plan.stored])
    return manifest
