"""The table of step programs: what each takes and gives, and which may follow it.

The loops know programs by number. They move between them by the table alone (`targets/commit_rules.h`), so a program
that the first one doesn't lead to is packed and proved, but not launched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.format.constants import MAX_PROGRAMS, MAX_TOKENS, NONE
from tilecompile.runtime.format.record import Field, Record

PROGRAM = Record(
    "StepProgram",
    16,
    (
        Field("tokens", "u4", "tokens that one step carries at most"),
        Field("on_prompt", "u4", "program of the next step while ids of the prompt are left, or NONE"),
        Field("on_token", "u4", "program of the next step once a token was sampled, or NONE"),
        Field("reserved", "u4", "reserved, zero"),
    ),
)

LOOP_INPUTS, LOOP_OUTPUTS = ("ids", "position"), ("logits", "next")
"""Tensors that the loop writes before a step, and those that it reads after one."""

EVERY_ROW = "every"
"""`ProgramSpec.logit_rows`: row i of the logits belongs to token i of the step."""


@dataclass(frozen=True)
class ProgramSpec:
    """What a step program of a name is: the tensors that it takes and gives, and the programs that may follow it."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    logit_rows: str = EVERY_ROW
    on_prompt: str | None = None
    on_token: str | None = None

    def stated(self, tokens: int) -> dict[str, object]:
        """Its entry in engine.json, for steps of at most `tokens` tokens."""
        return {
            "name": self.name,
            "tokens": tokens,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "logit_rows": self.logit_rows,
            "on_prompt": self.on_prompt,
            "on_token": self.on_token,
        }


PROGRAMS = {
    p.name: p
    for p in (
        ProgramSpec("decode", LOOP_INPUTS, LOOP_OUTPUTS, on_prompt="decode", on_token="decode"),
        ProgramSpec("draft", ("ids", "hidden", "position"), ("logits", "hidden")),
    )
}
"""The step programs that models are compiled to, by name. `draft` has nothing that leads to it yet."""

FIRST_PROGRAM = "decode"
"""The program that a request begins with."""


@dataclass(frozen=True)
class ProgramTable:
    """The table as a kernel takes it: a PROGRAM record for each program, and the program that requests begin with."""

    rows: npt.NDArray[np.void]
    first: int

    @property
    def launched(self) -> tuple[int, ...]:
        """The programs that a request can come to, ascending."""
        found, left = {NONE}, {self.first}
        while left:
            found |= left
            left = {int(self.rows[key][p]) for p in left for key in ("on_prompt", "on_token")} - found
        return tuple(sorted(found - {NONE}))

    @property
    def only(self) -> int:
        """The one program that is launched, or NONE where there are several."""
        return self.first if self.launched == (self.first,) else NONE


def program_table(stated: Sequence[Mapping[str, Any]], first: str) -> ProgramTable:
    """The table of the entries of engine.json. ValueError says which of them the loops can't run, and why."""
    names = [str(program["name"]) for program in stated]
    if len(set(names)) != len(names) or len(names) > MAX_PROGRAMS:
        raise ValueError(f"programs are {names}, want at most {MAX_PROGRAMS} of different names")
    if first not in names:
        raise ValueError(f"first_program is {first!r}, want one of {names}")
    number = {name: i for i, name in enumerate(names)}
    rows = np.zeros(len(names), PROGRAM.dtype)
    for i, program in enumerate(stated):
        if not 1 <= program["tokens"] <= MAX_TOKENS:
            raise ValueError(f"programs[{i}].tokens is {program['tokens']}, want 1 to {MAX_TOKENS}")
        rows["tokens"][i] = program["tokens"]
        for key in ("on_prompt", "on_token"):
            follower = program[key]
            if follower is not None and follower not in number:
                raise ValueError(f"programs[{i}].{key} is {follower!r}, want null or one of {names}")
            rows[key][i] = NONE if follower is None else number[follower]
    table = ProgramTable(rows, number[first])
    for i in table.launched:
        _check_launched(i, stated[i])
    return table


def _check_launched(i: int, program: Mapping[str, Any]) -> None:
    """ValueError unless the loops can run a program and know what follows it."""
    if not set(program["inputs"]) <= set(LOOP_INPUTS):
        raise ValueError(f"programs[{i}] runs and has inputs {program['inputs']}, want {list(LOOP_INPUTS)}")
    if not set(program["outputs"]) >= set(LOOP_OUTPUTS):
        raise ValueError(f"programs[{i}] runs and has outputs {program['outputs']}, want {list(LOOP_OUTPUTS)}")
    if program["logit_rows"] != EVERY_ROW:
        raise ValueError(f"programs[{i}].logit_rows is {program['logit_rows']!r}, want {EVERY_ROW!r}")
    for key in ("on_prompt", "on_token"):
        if program[key] is None:
            raise ValueError(f"programs[{i}].{key} is null, want a program: it runs")
