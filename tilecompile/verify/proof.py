"""verify: proves an engine's step programs before anything is emitted, over their tables alone.

What is proved, for every timing of the workers and their agents:

- layout: every instruction is in one stream, and each agent of a worker has one stream a program; regions are within
  their buffers; buffers have the size of their matrix; buffers and weight tiles are aligned, end inside their arena,
  don't overlap and leave no gaps in the pools; nothing writes to the weights; all memory together is within the limit;
- agreement: instructions have the task kind, operands, regions and weight runs that the statements about their
  operators say for their tile coordinates; operands have the types and widths that bodies are made for; workers are
  numbered through the devices, each has a stream in every program, and tasks wait and read on their own device;
- thresholds: what a wait expects is exactly what the program's instructions notify in a run;
- progress: dependencies together with each stream's order are acyclic, so no run can deadlock (counters only grow, so
  one order that completes shows that all do);
- sink: every instruction comes before the program's one commit;
- order: two instructions of a step that touch the same region, one of them writing, are always ordered, and everything
  that is read from a step's scratch memory has been written in the same step before;
- weights: every tape run names its tile and its place; each tensor that a program reads unconditionally has
  all its rows read exactly once on the device that owns them (equally often over the devices where there are replicas);
  of a tensor that is addressed by expert slots, all rows are read once in each slot, so at most once for any distinct
  ids; a program reads exactly the tensors that its operators stream, and the others are listed.

Across steps no pair is checked: a step, of whatever program, begins after the record that the sink of the step before
has published, and all of that step is before its sink. So each overwrite comes after all reads of earlier steps, and
the argument needs what is proved: one sink a program with everything before it, events that only their own program
notifies and awaits, exact thresholds (a counter stands at runs times count when a run begins), and that caches and io
buffers are touched by instructions, which are all in some step. The controller writes ids and position for the next
step within the sink. Scratch buffers of different programs may share memory, because each step writes what it reads of
them; those that one program touches may not.

What is taken on trust: the statements themselves, which are that bodies touch no more than their accesses (tests of
the ops check that) and that an operator has the body, the operands and the weights of its name (comparisons of the
interpreter and the kernel with the model see that); and that a write covers its whole region (of a window with gaps the
region is the interval around it; see `tile.region_of`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tilecompile.runtime.names import by_layer
from tilecompile.verify.base import WEIGHT, Names, Subject, Tables, VerifyError
from tilecompile.verify.bodies import check_bodies, check_placement, check_runs
from tilecompile.verify.memory import Memory, check_packed, check_places, check_regions
from tilecompile.verify.order import check_order, check_thresholds
from tilecompile.verify.weights import check_tapes, check_tiles
from tilecompile.verify.windows import Proved, check_windows

__all__ = ["Memory", "Names", "ProgramProof", "Proof", "Proved", "VerifyError", "verify"]

MANY = 20_000
"""Instructions from which on programs are proved by windows."""


@dataclass(frozen=True)
class ProgramProof:
    """What was proved of one step program: numbers of instructions, waits, ordered pairs, weight runs and slots; names
    of the streamed weights that it reads by slot, and of weights (streamed or operands) that it doesn't read."""

    instructions: int
    edges: int
    pairs: int
    runs: int
    slots: int
    weights: int
    gathered: tuple[str, ...]
    unread: tuple[str, ...]


@dataclass(frozen=True)
class Proof:
    """What was proved: numbers of instructions, waits (edges), ordered pairs, buffers and tiles, weight runs and the
    seconds it took; and the same by program."""

    instructions: int
    edges: int
    pairs: int
    spans: int
    runs: int
    programs: tuple[ProgramProof, ...]
    seconds: float

    @property
    def checks(self) -> int:
        """Facts that were checked one by one: a threshold a wait, pairs, places in memory, weight runs."""
        return self.edges + self.pairs + self.spans + self.runs

    def __str__(self) -> str:
        lines = [
            f"{self.instructions} instructions, {self.edges} waits: thresholds exact, no deadlock, one sink a program, "
            f"{self.pairs} conflicting pairs ordered, {self.spans} buffers and tiles apart, {self.runs} weight runs "
            f"cover every row once, in {self.seconds:.2f} s"
        ]
        for i, p in enumerate(self.programs):
            lines.append(
                f"program {i}: reads {p.weights} weights whole and {len(p.gathered)} by slot ({p.slots} slots), "
                f"{len(p.unread)} not{': ' * bool(p.unread)}{', '.join(by_layer(p.unread))}"
            )
        return "\n".join(lines) + "\n"


def verify(
    tables: Tables,
    operators: Sequence[str],
    memory: Memory | None = None,
    buffers: Sequence[str] = (),
    weights: Sequence[str] = (),
    proved: Proved | None = None,
    layers: Sequence[int | None] = (),
    stated: bool = True,
) -> Proof:
    """Proves all programs of the tables. Raises VerifyError naming both instructions and the missing edge.

    Without `memory` no sizes are checked; with `stated` False neither is the agreement with statements about operators,
    for tables that have none. `operators`, `buffers` and `weights` are names by index,
    `layers` are those of the operators: hints where to cut a long program, on which no verdict depends. Programs of
    many instructions are proved by windows that repeat, as are all with `proved`, which has what earlier proofs found.
    """
    start = time.perf_counter()
    s = Subject(tables, Names(operators, buffers, weights, layers))
    whole = proved or Proved()
    whole.once("tiles", _of(s, "tiles weights"), lambda: check_tiles(s))
    spans = whole.once("places", [*_of(s, "buffers tiles"), memory], lambda: check_places(s, memory))
    given = "streams instructions regions operands buffers"
    whole.once("regions", _of(s, given), lambda: check_regions(s))
    programs = tuple(_program(s, p, whole, proved is not None) for p in range(s.programs))
    if stated:
        whole.once("agreement", list(tables.values()), lambda: check_agreement(s))
        if memory is not None:
            whole.once("packed", [*_of(s, "buffers tiles"), memory], lambda: check_packed(s, memory))
    edges, pairs, runs = (sum(getattr(p, f) for p in programs) for f in ("edges", "pairs", "runs"))
    total = len(tables["instructions"])
    return Proof(total, edges, pairs, spans, runs, programs, time.perf_counter() - start)


def check_agreement(s: Subject) -> None:
    """Checks what tables say more than once, and that it is what the statements about operators say."""
    check_bodies(s)
    check_runs(s)
    check_placement(s)


def _of(s: Subject, names: str) -> list[Any]:
    """Tables by their names."""
    return [s.t[name] for name in names.split()]


def _program(s: Subject, program: int, proved: Proved, windows: bool) -> ProgramProof:
    given = _of(s, "streams instructions waits notifies events")
    proved.once(f"thresholds {program}", given, lambda: check_thresholds(s, program))
    given += _of(s, "regions buffers")
    by_windows = windows or len(s.program) >= MANY
    order = partial(check_windows, proved=proved) if by_windows else check_order
    pairs = proved.once(f"order {program}", given, lambda: order(s, program))
    given = _of(s, "streams instructions tape tiles weights")
    tapes = proved.once(f"tapes {program}", given, lambda: check_tapes(s, program))
    mine = s.program == program
    rows, owner = s.rows("operand")
    touched = set(s.t["operands"]["buffer"][rows[mine[owner]]].tolist())
    constants = np.flatnonzero(s.t["buffers"]["arena"] == WEIGHT).tolist()
    unread = [s.weight(w) for w in tapes.unread] + [s.tensor(b) for b in constants if b not in touched]
    return ProgramProof(
        instructions=int(mine.sum()),
        edges=int(s.t["instructions"]["wait_count"][mine].sum()),
        pairs=pairs,
        runs=tapes.runs,
        slots=tapes.slots,
        weights=len(tapes.read),
        gathered=tuple(s.weight(w) for w in tapes.gathered),
        unread=tuple(unread),
    )
