"""A plan: the result of the passes for a model's step programs, from which an engine folder is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tilecompile.engine.kinds import Kinds
from tilecompile.ir.graph import OpGraph
from tilecompile.ir.placement import PlacedGraph
from tilecompile.ir.program import EngineGraph, Program
from tilecompile.ir.tasks import TaskGrids
from tilecompile.passes.repetition import Repeat, whole_graph, whole_placed, whole_program


@dataclass(frozen=True)
class Plan:
    """The plan of a model: of all its layers, or of a few, some of which are repeated.

    `graphs` are the fused step programs, `placed` those of all devices, `tiled` their tasks, `kinds` the bodies that
    these run; `program` is the schedule, whose operators in the order of `Instruction.op` are `operators`. `stored` is
    the schedule as the engine's tables have it, where layers that `repeat` names stand once.
    """

    graphs: list[OpGraph]
    placed: list[PlacedGraph]
    tiled: list[TaskGrids]
    kinds: Kinds
    program: Program
    operators: EngineGraph
    stored: Program
    repeat: Repeat | None = None

    @property
    def copies(self) -> Callable[[int | None], int]:
        """How many layers of the whole model a layer of `graphs` stands for."""
        return copies_of(self.repeat)

    def expanded(self) -> Plan:
        """The plan of the whole model that a short one stands for: graphs and tasks stay those of the short one."""
        if self.repeat is None:
            return self
        operators = whole_graph(self.operators, self.repeat, self.program)
        program = whole_program(self.program, self.repeat, self.operators, operators)
        placed = [whole_placed(p, self.repeat, operators) for p in self.placed]
        return replace(self, placed=placed, program=program, operators=operators)


def copies_of(repeat: Repeat | None) -> Callable[[int | None], int]:
    """How many layers of the whole model a layer of a short model stands for; None is what is in no layer."""
    return repeat.copies if repeat else lambda layer: 1
