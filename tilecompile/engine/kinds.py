"""The task kinds of an engine: the bodies that its tasks run, specialised to shapes, for CPUs and GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tilecompile.errors import InputError
from tilecompile.ir.node import OpNode
from tilecompile.ir.placement import PlacedGraph
from tilecompile.ops.base import op_of
from tilecompile.ops.commit import COMMIT
from tilecompile.options import Settings
from tilecompile.runtime.format import COMMIT_KIND
from tilecompile.targets.cpu import emit
from tilecompile.targets.cpu.windows import check_windows
from tilecompile.targets.cuda import emit as cuda_emit
from tilecompile.targets.kind import Kind

Label = tuple[str, str]
"""A step program and the name of one of its operators."""


@dataclass(frozen=True)
class Kinds:
    """Task kinds, and the kind of each operator; sinks have none, as every kernel's loop implements them."""

    kinds: Sequence[Kind]
    of_node: Mapping[Label, Kind]
    index: Mapping[Label, int]
    """What `Instruction.kind` holds for each operator, sinks included."""

    @property
    def names(self) -> list[str]:
        """The names by what `Instruction.kind` holds."""
        return [COMMIT.name, *(kind.function for kind in self.kinds)]


def kinds_of(placed: Iterable[PlacedGraph], settings: Settings) -> Kinds:
    """The task kinds of placed step programs; for GPUs with bodies, where they are to make a kernel.

    InputError if the target lacks bodies for some of the operators.
    """
    nodes: dict[Label, OpNode] = {(p.graph.program, n.name): n for p in placed for n in p.graph.nodes}
    kinds: Sequence[Kind]
    of_node: Mapping[Label, Kind]
    if settings.machine.is_cpu:
        check_windows(nodes.values())
    if settings.machine.is_cpu or not settings.kernel:
        kinds, of_node = emit.task_kinds(nodes)
    else:
        _check_bodies(nodes.values(), settings)
        kinds, of_node = cuda_emit.task_kinds(nodes)
    index = {label: of_node[label].index if label in of_node else COMMIT_KIND for label in nodes}
    return Kinds(kinds, of_node, index)


def _check_bodies(nodes: Iterable[OpNode], settings: Settings) -> None:
    missing = sorted({node.op for node in nodes if op_of(node).gpu is None and not op_of(node).is_sink})
    if missing:
        raise InputError(
            f"the target {settings.target} has no bodies yet for {', '.join(missing)}; with --no-kernel the engine has "
            "everything else"
        )
