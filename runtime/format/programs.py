"""The table of step programs: what each takes and gives, and which may follow it.

The loops know programs by number. They move between them by the table alone (`targets/commit_rules.h`), so a program
that the first one doesn't lead to is packed and proved, but not launched.

A round of speculation (Leviathan, Kalman, Matias 2023, arXiv 2211.17192) is a `verify` step over the last token and the
drafts after it, an `extend` step of the MTP layer over the tokens that were accepted, which makes the first draft, and
a `draft` step for each further one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.format.constants import MAX_PROGRAMS, MAX_TOKENS, NONE
from tilecompile.runtime.format.record import Field, Record
from tilecompile.runtime.format.sampling import SAMPLING_INPUTS

PROGRAM = Record(
    "StepProgram",
    56,
    (
        Field("logits", "u8", "address of its logits, f4 [rows, vocab]"),
        Field("next", "u8", "address of the ids that it samples, i4 [rows]"),
        Field("tokens", "u4", "tokens that one step carries at most"),
        Field("drafts", "u4", "1: an MTP layer's, which takes the ids after its positions and samples drafts"),
        Field("last_row", "u4", "1: rows = 1, that of the step's last token; 0: one for each token"),
        Field("on_prompt", "u4", "program of the next step while several ids of the prompt are left, or NONE"),
        Field("on_single", "u4", "while one is left, whose every row of logits is needed or not"),
        Field("on_every", "u4", "while several are left whose every logit is needed"),
        Field("on_token", "u4", "once a token was sampled, without drafts"),
        Field("on_taken", "u4", "over the ids after a step's positions, before tokens are drafted"),
        Field("on_draft", "u4", "for a further draft"),
        Field("on_verify", "u4", "over the last token and the drafts after it"),
    ),
)

FOLLOWERS = ("on_prompt", "on_single", "on_every", "on_token", "on_taken", "on_draft", "on_verify")
"""The fields that name a following program."""

SPECULATIVE = ("on_taken", "on_draft", "on_verify")
"""Those of them that a program without speculation leaves out: all or none."""

LOOP_INPUTS, LOOP_OUTPUTS = ("ids", "position"), ("logits", "next")
"""Tensors that the loop writes before a step, and those that it reads after one."""

EVERY_ROW, LAST_ROW = "every", "last"
"""`ProgramSpec.logit_rows`: row i of the logits belongs to token i of the step, or the only one to the last token."""


@dataclass(frozen=True)
class ProgramSpec:
    """What a step program of a name is: the rows of its logits, and whether it samples drafts.

    Each of `follows` names the programs of which the first that the engine has comes next; without one, none does.
    """

    name: str
    logit_rows: str = EVERY_ROW
    drafts: bool = False

    def stated(
        self, tokens: int, programs: Collection[str], inputs: Collection[str] = LOOP_INPUTS
    ) -> dict[str, object]:
        """Its entry in engine.json, for steps of at most `tokens` tokens in an engine with these programs."""
        follows = {key: next((n for n in names if n in programs), None) for key, names in FOLLOWING.items()}
        if not {"verify", "extend", "draft"} <= set(programs):
            follows |= dict.fromkeys(SPECULATIVE)
        return {
            "name": self.name,
            "tokens": tokens,
            "drafts": self.drafts,
            "inputs": list(inputs),
            "outputs": list(LOOP_OUTPUTS),
            "logit_rows": self.logit_rows,
            **follows,
        }


FOLLOWING = {
    "on_prompt": ("prefill", "decode"),
    "on_single": ("decode",),
    "on_every": ("verify", "decode"),
    "on_token": ("decode",),
    "on_taken": ("extend",),
    "on_draft": ("draft",),
    "on_verify": ("verify",),
}
"""What comes next, in every program: the first of these that an engine has."""

PROGRAMS = {
    p.name: p
    for p in (
        ProgramSpec("decode"),
        ProgramSpec("verify"),
        ProgramSpec("prefill", LAST_ROW),
        ProgramSpec("extend", LAST_ROW, drafts=True),
        ProgramSpec("draft", LAST_ROW, drafts=True),
    )
}
"""The step programs that models are compiled to, by name."""

FIRST_PROGRAM = "decode"
"""The program whose followers a request begins with."""


@dataclass(frozen=True)
class ProgramTable:
    """The table as a kernel takes it: a PROGRAM record for each program, and the program that requests begin with.

    Addresses are zero: a launch fills them in.
    """

    rows: npt.NDArray[np.void]
    first: int

    @property
    def launched(self) -> tuple[int, ...]:
        """The programs that a request can come to, ascending."""
        found, left = {NONE}, {int(self.rows[key][self.first]) for key in FOLLOWERS} - {NONE}
        while left:
            found |= left
            left = {int(self.rows[key][p]) for p in left for key in FOLLOWERS} - found
        return tuple(sorted(found - {NONE}))

    @property
    def only(self) -> int:
        """The one program that is launched, or NONE where there are several."""
        return self.launched[0] if len(self.launched) == 1 else NONE

    @property
    def drafts(self) -> int:
        """Most tokens that a round of speculation drafts; 0 in an engine without."""
        verify = int(self.rows["on_verify"][self.first])
        return 0 if verify == NONE else int(self.rows["tokens"][verify]) - 1


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
        if program["logit_rows"] not in (EVERY_ROW, LAST_ROW):
            found = f"programs[{i}].logit_rows is {program['logit_rows']!r}"
            raise ValueError(f"{found}, want {EVERY_ROW!r} or {LAST_ROW!r}")
        rows["tokens"][i], rows["drafts"][i] = program["tokens"], program["drafts"]
        rows["last_row"][i] = program["logit_rows"] == LAST_ROW
        for key in FOLLOWERS:
            follower = program[key]
            if follower is not None and follower not in number:
                raise ValueError(f"programs[{i}].{key} is {follower!r}, want null or one of {names}")
            rows[key][i] = NONE if follower is None else number[follower]
    table = ProgramTable(rows, number[first])
    for i in sorted({table.first, *table.launched}):
        _check_launched(i, stated, table)
    return table


def _check_launched(i: int, stated: Sequence[Mapping[str, Any]], table: ProgramTable) -> None:
    """ValueError unless the loops can run a program and know what follows it."""
    program = stated[i]
    if not set(program["inputs"]) <= {*LOOP_INPUTS, *SAMPLING_INPUTS}:
        raise ValueError(f"programs[{i}] runs and has inputs {program['inputs']}, want {list(LOOP_INPUTS)}")
    if not set(program["outputs"]) >= set(LOOP_OUTPUTS):
        raise ValueError(f"programs[{i}] runs and has outputs {program['outputs']}, want {list(LOOP_OUTPUTS)}")
    for key in FOLLOWERS:
        if program[key] is None and key not in SPECULATIVE:
            raise ValueError(f"programs[{i}].{key} is null, want a program: it runs")
    given = [program[key] for key in SPECULATIVE]
    if None in given and set(given) != {None}:
        raise ValueError(f"programs[{i}] has {dict(zip(SPECULATIVE, given, strict=True))}, want all of them or none")
    for key in FOLLOWERS:
        follower = int(table.rows[key][i])
        if follower == NONE:
            continue
        row, what = table.rows[follower], f"programs[{i}].{key} is {program[key]!r}"
        if bool(row["drafts"]) != (key in ("on_taken", "on_draft")):
            raise ValueError(f"{what}, which {'samples' if row['drafts'] else 'does not sample'} drafts")
        if row["last_row"] and key in ("on_single", "on_every", "on_verify"):
            raise ValueError(f"{what}, which gives the logits of one token a step")
        if not row["last_row"] and row["drafts"] and row["tokens"] > 1:
            raise ValueError(f"{what}, which samples several drafts a step")
    if given[0] is not None:
        keys = ("on_prompt", "on_single", "on_every", "on_token", "on_verify")
        most = max(int(table.rows["tokens"][int(table.rows[key][i])]) for key in keys)
        extend = int(table.rows["on_taken"][i])
        if table.rows["tokens"][extend] < most:
            what = f"programs[{i}].on_taken takes {table.rows['tokens'][extend]} tokens a step"
            raise ValueError(f"{what}, want {most} as the programs before it")
