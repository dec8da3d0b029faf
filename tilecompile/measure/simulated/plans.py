"""Plans to simulate: an engine's, or one that is compiled for the purpose, without weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tilecompile.cost.simulate.step import Simulated, simulate
from tilecompile.engine.graph_json import read_graph
from tilecompile.ir.node import OpNode
from tilecompile.runtime.folder.manifest import NAME, Manifest, read_manifest
from tilecompile.runtime.folder.tables import Tables, load_tables
from tilecompile.runtime.progress import Progress
from tilecompile.schedules.machine import Machine

if TYPE_CHECKING:
    from tilecompile.options import CompileOptions


@dataclass(frozen=True)
class Plan:
    """The parts of an engine that a simulation needs: its manifest, tables and operators."""

    manifest: Manifest
    tables: Tables
    nodes: list[OpNode]

    def step(
        self,
        machine: Machine,
        context: int,
        threads: int | None = None,
        program: str = "decode",
        tokens: int | None = None,
    ) -> Simulated:
        """One step of a step program on a machine, as `simulate` says. EngineError where there is no such program."""
        self.manifest.program(program)
        names = [p["name"] for p in self.manifest.data["programs"]]
        return simulate(self.manifest, self.tables, self.nodes, machine, context, threads, names.index(program), tokens)


def is_engine(path: str) -> bool:
    """Whether it is an engine folder; otherwise it may be a model."""
    return (Path(path) / NAME).is_file()


def plan_of(engine: Path) -> Plan:
    """The plan of an engine folder. EngineError as `read_manifest` has it."""
    manifest = read_manifest(engine)
    return Plan(manifest, load_tables(manifest), read_graph(manifest).nodes)


@contextmanager
def compiled(options: CompileOptions, max_seq_len: int | None, progress: Progress) -> Iterator[Plan]:
    """The plan of a model for `max_seq_len` positions, compiled without weights into a temporary folder.

    Placement `auto` is chosen for a context of all of them, unless the options name another one. InputError as
    `compile_model` has it.
    """
    from tilecompile.compile import compile_model

    context = options.context or max_seq_len if options.placement == "auto" else None
    with TemporaryDirectory(prefix="tilecompile-plan-") as folder:
        output = Path(folder) / "engine"
        made = replace(
            options, output=output, no_weights=True, no_kernel=True, max_seq_len=max_seq_len, context=context
        )
        compile_model(made, progress)
        yield plan_of(output)
