"""The rules of a request in Python decide as the kernels' header does, case by case, through the compiled header."""

from __future__ import annotations

import ctypes
import itertools
import random
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilecompile.interpret.commit_rules import Asked, Limits, Next, Step, decide, first_step
from tilecompile.runtime import format as fmt
from tilecompile.targets.cpu.build import find_compiler
from tilecompile.targets.cpu.emit import RULES

CALL = """
struct Case {
  Asked asked;
  Limits limits;
  Step step;
  int32_t sampled[MAX_TOKENS], stops[2];
};
struct Answer {
  Next first, next;
  uint32_t fed;
  Step record;  // of `next`, as run 3, step 7
};
extern "C" void NAME(const Case* cases, const StepProgram* programs, Answer* answers, int count) {
  for (int i = 0; i < count; ++i) {
    const Case& c = cases[i];
    Limits limits = c.limits;
    limits.programs = programs;
    Answer& a = answers[i] = {};
    a.first = first_step(c.asked, limits);
    a.next = decide(
        c.step, c.asked, limits, [&](uint32_t row) { return c.sampled[row]; }, [&](uint32_t s) { return c.stops[s]; });
    a.fed = fed_of(c.asked, c.step.context);
    describe(a.record, a.next, 3, 7);
  }
}
"""


def _struct(*fields: str) -> np.dtype[np.void]:
    return np.dtype([(name, "<u4") for name in fields])


ASKED = _struct("position", "count", "max_new", "every_logit", "generated", "aborted")
NEXT = _struct("reason", "program", "position", "tokens", "flags", "source", "row", "taken")
LIMITS = np.dtype(
    [("programs", "<u8"), *((name, "<u4") for name in ("first_program", "vocab", "max_seq_len", "stop_count"))]
)
STEP = fmt.STEP.dtype
CASE = np.dtype(
    [("asked", ASKED), ("limits", LIMITS), ("step", STEP), ("sampled", "<i4", (fmt.MAX_TOKENS,)), ("stops", "<i4", 2)]
)
ANSWER = np.dtype([("first", NEXT), ("next", NEXT), ("fed", "<u4"), ("record", STEP)])


@dataclass(frozen=True)
class Case:
    """A step, its request, what it sampled, and what all requests of the launch have in common."""

    step: Step
    asked: Asked
    limits: Limits
    sampled: tuple[int, ...]


def build(folder: Path, rules: Mapping[str, str], *warnings: str) -> ctypes.CDLL:
    """A library with variants of the header, by the name of the function that decides."""
    parts = [fmt.c_header()]
    parts += [f"namespace of_{name} {{\n{text}{CALL.replace('NAME', name)}}}" for name, text in rules.items()]
    source, library = folder / "rules.cpp", folder / "rules.so"
    source.write_text("\n".join(parts).replace("#pragma once\n", ""))
    options = ["-std=c++20", "-O1", *warnings, "-shared", "-fPIC"]
    subprocess.run([find_compiler(), *options, "-o", str(library), str(source)], check=True)
    return ctypes.CDLL(str(library))


def rows_of(cases: list[Case]) -> np.ndarray:
    """The cases as CASE records."""
    rows = np.zeros(len(cases), CASE)
    for row, case in zip(rows, cases, strict=True):
        limits, step = case.limits, case.step
        row["asked"] = tuple(int(getattr(case.asked, name)) for name in ASKED.names)
        row["limits"] = (0, limits.programs.first, limits.vocab, limits.max_seq_len, len(limits.stops))
        for name in ("program", "position", "tokens", "context"):
            row["step"][name] = getattr(step, name)
        row["sampled"][: len(case.sampled)] = case.sampled
        row["stops"][: len(limits.stops)] = limits.stops
    return rows


def by_twin(cases: list[Case]) -> np.ndarray:
    """What the twin decides, as ANSWER records."""
    answers = np.zeros(len(cases), ANSWER)
    for answer, case in zip(answers, cases, strict=True):
        following = decide(case.step, case.asked, case.limits, case.sampled)
        answer["first"] = _fields(first_step(case.asked, case.limits))
        answer["next"] = _fields(following)
        answer["fed"] = case.asked.fed(case.step.context)
        record = Step(following.program, 3, following.position, following.tokens, following.flags)
        for name in ("program", "run", "position", "tokens", "flags", "context"):
            answer["record"][name] = getattr(record, name)
        answer["record"]["sequence"] = 7
    return answers


def _fields(following: Next) -> tuple[int, ...]:
    return tuple(int(getattr(following, name)) for name in NEXT.names)


def random_table(rng: random.Random) -> fmt.ProgramTable:
    """One to MAX_PROGRAMS programs in which anything may follow anything."""
    count = rng.randint(1, fmt.MAX_PROGRAMS)
    rows = np.zeros(count, fmt.PROGRAM.dtype)
    for row in rows:
        row["tokens"] = rng.randint(1, fmt.MAX_TOKENS)
        row["on_prompt"], row["on_token"] = rng.randrange(count), rng.randrange(count)
    return fmt.ProgramTable(rows, rng.randrange(count))


def random_case(rng: random.Random, programs: fmt.ProgramTable) -> Case:
    """Numbers near each other, so that the limits are met often."""
    vocab, max_seq_len = rng.randint(1, 6), rng.randint(1, 40)
    position, tokens = rng.randint(0, 9), rng.randint(1, fmt.MAX_TOKENS)
    asked = Asked(
        position=position,
        count=rng.randint(1, 12),
        max_new=rng.choice([0, 1, rng.randint(1, 5), 0xFFFFFFFF]),
        every_logit=rng.random() < 0.3,
        generated=rng.randint(0, 5),
        aborted=rng.random() < 0.1,
    )
    at = max(position, position + rng.choice([0, asked.count]) - tokens + rng.randint(-3, 3))
    step = Step(rng.randrange(len(programs.rows)), 1, at, tokens, 0)
    sampled = tuple(rng.randint(-1, vocab) for _ in range(tokens))
    stops = [rng.randrange(vocab) for _ in range(rng.randint(0, 2))]
    return Case(step, asked, Limits(programs, vocab, max_seq_len, stops), sampled)


def boundary_cases(programs: fmt.ProgramTable) -> Iterator[Case]:
    """Every combination of values before, at and behind each limit."""
    vocab = 4
    for tokens, count, behind in itertools.product((1, fmt.MAX_TOKENS), (1, 9), (-1, 0, 1)):
        position = 5
        context = max(position + tokens, position + count + behind)
        for id, stops, room in itertools.product((-1, 0, vocab - 1, vocab), ([], [3, 0]), (-1, 0, 1)):
            for max_new, generated, logits, aborted in itertools.product(
                (0, 1, 2), (0, 1), (False, True), (False, True)
            ):
                asked = Asked(position, count, max_new, logits, generated, aborted)
                sampled = (*[1] * (tokens - 1), id)
                step = Step(len(programs.rows) - 1, 1, context - tokens, tokens, 0)
                yield Case(step, asked, Limits(programs, vocab, max(1, context + room), stops), sampled)


@cache
def compared() -> list[tuple[list[Case], np.ndarray, np.ndarray]]:
    """Thousands of cases, by table of programs: the cases, their records, and what the twin decides."""
    rng = random.Random(1)
    two = np.array([(3, 0, 1, 0), (1, 0, 1, 0)], fmt.PROGRAM.dtype)
    groups = [list(boundary_cases(fmt.ProgramTable(two, 0)))]
    for _ in range(40):
        programs = random_table(rng)
        groups.append([random_case(rng, programs) for _ in range(200)])
    return [(cases, rows_of(cases), by_twin(cases)) for cases in groups]


def differs(function: Any) -> Case | None:
    """The first case that the header and the twin decide differently."""
    for cases, rows, want in compared():
        answers = np.zeros(len(cases), ANSWER)
        arrays = (rows, cases[0].limits.programs.rows, answers)
        function(*(ctypes.c_void_p(array.ctypes.data) for array in arrays), len(cases))
        unequal = np.flatnonzero(answers != want)
        if unequal.size:
            return cases[unequal[0]]
    return None


def test_the_twin_decides_as_the_header(tmp_path: Path) -> None:
    library = build(tmp_path, {"decide_all": RULES.read_text()}, "-Wall", "-Wextra", "-Werror")
    assert differs(library.decide_all) is None


def test_the_cases_come_to_every_end_and_every_kind_of_step() -> None:
    """Otherwise a rule would be compared nowhere."""
    found = np.concatenate([want for _, _, want in compared()])["next"]
    assert set(found["reason"]) == set(fmt.Reason)
    going = found[found["reason"] == fmt.Reason.NO_REASON]
    assert set(going["source"]) == set(fmt.IdSource)
    assert set(going["tokens"]) == set(range(1, fmt.MAX_TOKENS + 1))
    assert set(going["program"]) == set(range(fmt.MAX_PROGRAMS))
    assert set(going["flags"]) == {0, fmt.NEEDS_LOGITS}
    assert len(found) > 8000


ABORT = "  if (asked.aborted) return end(ABORTED);\n"
PROGRAM = "  const StepProgram& program = limits.programs[step.program];\n"
PROMPT = (
    "  if (step.context < asked.position + asked.count) "
    "return feed_at(asked, limits, program.on_prompt, step.context);\n"
)
ALONE = "  if (asked.max_new == 0) return end(MAX_NEW);\n"
BAD = "  if (uint32_t(id) >= limits.vocab) return end(BAD_ID);  // bodies take ids on trust\n"
STOP = "  for (uint32_t i = 0; i < limits.stop_count; ++i)\n    if (stop(i) == id) return end(STOP_ID, row, taken);\n"
MOST = "  if (asked.generated + taken >= asked.max_new) return end(MAX_NEW, row, taken);\n"
FULL = "  if (step.context >= limits.max_seq_len) return end(CONTEXT_FULL, row, taken);\n"
MISTAKES = {
    "an abort is overlooked": [("if (asked.aborted)", "if (false)")],
    "the prompt's last id is fed twice": [(PROMPT, PROMPT.replace("<", "<="))],
    "a prompt alone samples": [(ALONE, ALONE.replace("== 0", "== 1"))],
    "the first token's row counts": [("row = step.tokens - 1", "row = 0")],
    "an id behind the vocabulary": [(BAD, BAD.replace(">=", ">"))],
    "a negative id": [(BAD, BAD.replace("uint32_t(id) >= limits.vocab", "id >= int32_t(limits.vocab)"))],
    "the last stop id is overlooked": [(STOP, STOP.replace("i <", "i + 1 <"))],
    "a token too many": [(MOST, MOST.replace(">=", ">"))],
    "the caches overflow": [(FULL, FULL.replace(">=", ">"))],
    "the prompt's program goes on": [("program.on_token", "program.on_prompt")],
    "the prompt goes on in the same program": [(PROMPT, PROMPT.replace("program.on_prompt", "step.program"))],
    "requests begin with program 0": [("limits.first_program, asked", "0, asked")],
    "ids behind the prompt": [("left < most ? left : most", "most")],
    "more ids than a program takes": [("left < most ? left : most", "left")],
    "logits come too late": [("position + tokens >= asked.position", "position + tokens > asked.position")],
    "logits in every step": [("asked.every_logit || last", "true || last")],
    "ids from elsewhere": [("taken, SAMPLED_IDS", "taken, PROMPT_IDS")],
    "the token is lost": [("next.taken = taken", "next.taken = 0")],
    "another context": [("next.position + next.tokens", "next.position + 1")],
    "fed beyond the prompt": [("(context < end ? context : end)", "(end < context ? context : end)")],
    "an abort comes behind the prompt": [(ABORT, ""), (PROGRAM, ""), (PROMPT, PROGRAM + PROMPT + ABORT)],
    "a prompt alone ends early": [(PROMPT + ALONE, ALONE + PROMPT)],
    "a prompt alone has a bad id": [(ALONE, ""), (BAD, BAD + ALONE)],
    "the limit comes before the stop id": [(STOP + MOST, MOST + STOP)],
    "full caches come before the limit": [(MOST + FULL, FULL + MOST)],
}


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The header with each of the mistakes."""
    variants = {}
    for number, changes in enumerate(MISTAKES.values()):
        text = RULES.read_text()
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        variants[f"mistake{number}"] = text
    return build(tmp_path_factory.mktemp("rules"), variants)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_changed_rule_is_noticed(name: str, mistaken: ctypes.CDLL) -> None:
    assert differs(getattr(mistaken, f"mistake{list(MISTAKES).index(name)}"))
