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

from tilecompile.interpret.commit_rules import Asked, Limits, Next, Step, decide, draft_of, first_step
from tilecompile.runtime import format as fmt
from tilecompile.targets.cpu.build import find_compiler
from tilecompile.targets.cpu.emit import RULES

CALL = """
struct Case {
  Asked asked;
  Limits limits;
  Step step;
  int32_t sampled[MAX_TOKENS + 1], drafts[MAX_TOKENS], stops[2];
};
struct Answer {
  Next first, next;
  uint32_t fed, known;
  int32_t draft;
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
        c.step, c.asked, limits, [&](uint32_t row) { return c.sampled[row]; }, [&](uint32_t d) { return c.drafts[d]; },
        [&](uint32_t s) { return c.stops[s]; });
    a.fed = fed_of(c.asked, c.step.context);
    Asked going = c.asked;
    going.aborted = 0;
    a.known = known_follower(c.step, going, limits);
    a.draft = draft_of(limits, c.sampled[0]);
    describe(a.record, a.next, 3, 7);
  }
}
"""


def _struct(*fields: str) -> np.dtype[np.void]:
    return np.dtype([(name, "<u4") for name in fields])


ASKED = _struct("position", "count", "max_new", "every_logit", "drafts", "generated", "drafted", "aborted")
NEXT = _struct("reason", "program", "position", "tokens", "flags", "row", "taken", "drafted")
LIMITS = np.dtype(
    [("programs", "<u8"), *((name, "<u4") for name in ("first_program", "vocab", "max_seq_len", "stop_count"))]
)
STEP = fmt.STEP.dtype
CASE = np.dtype(
    [
        ("asked", ASKED),
        ("limits", LIMITS),
        ("step", STEP),
        ("sampled", "<i4", (fmt.MAX_TOKENS + 1,)),
        ("drafts", "<i4", (fmt.MAX_TOKENS,)),
        ("stops", "<i4", 2),
        ("padding", "<i4", 1),
    ]
)
ANSWER = np.dtype(
    [("first", NEXT), ("next", NEXT), ("fed", "<u4"), ("known", "<u4"), ("draft", "<i4"), ("record", STEP)]
)


@dataclass(frozen=True)
class Case:
    """A step, its request, what it sampled, and what all requests of the launch have in common."""

    step: Step
    asked: Asked
    limits: Limits
    sampled: tuple[int, ...]
    drafts: tuple[int, ...] = ()


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
        row["drafts"][: len(case.drafts)] = case.drafts
        row["stops"][: len(limits.stops)] = limits.stops
    return rows


def by_twin(cases: list[Case]) -> np.ndarray:
    """What the twin decides, as ANSWER records."""
    answers = np.zeros(len(cases), ANSWER)
    for answer, case in zip(answers, cases, strict=True):
        following = decide(case.step, case.asked, case.limits, case.sampled, case.drafts)
        answer["first"] = _fields(first_step(case.asked, case.limits))
        answer["next"] = _fields(following)
        answer["fed"] = case.asked.fed(case.step.context)
        answer["draft"] = draft_of(case.limits, case.sampled[0])
        record = Step(following.program, 3, following.position, following.tokens, following.flags)
        for name in ("program", "run", "position", "tokens", "flags", "context"):
            answer["record"][name] = getattr(record, name)
        answer["record"]["sequence"], answer["record"]["follower"] = 7, fmt.NONE
    return answers


def _fields(following: Next) -> tuple[int, ...]:
    return tuple(int(getattr(following, name)) for name in NEXT.names)


def random_table(rng: random.Random) -> fmt.ProgramTable:
    """One to MAX_PROGRAMS programs in which anything may follow anything."""
    count = rng.randint(1, fmt.MAX_PROGRAMS)
    rows = np.zeros(count, fmt.PROGRAM.dtype)
    for row in rows:
        row["tokens"] = rng.randint(1, fmt.MAX_TOKENS)
        row["drafts"], row["last_row"] = rng.random() < 0.3, rng.random() < 0.3
        for key in fmt.FOLLOWERS:
            row[key] = rng.randrange(count)
        if not row["drafts"] and rng.random() < 0.2:
            row["on_taken"] = row["on_verify"] = fmt.NONE
    return fmt.ProgramTable(rows, rng.randrange(count))


def random_case(rng: random.Random, programs: fmt.ProgramTable) -> Case:
    """Numbers near each other, so that the limits are met often.

    A step that isn't the prompt's takes the last known id, and the request had room for more tokens when it began.
    """
    vocab, position, count = rng.randint(1, 6), rng.randint(0, 9), rng.choice([rng.randint(1, 12), 40])
    generated = rng.randint(0, 5)
    max_new = rng.choice([generated + 1, generated + rng.randint(1, 5), 0xFFFFFFFF])
    if not generated:
        max_new = rng.choice([0, max_new])
    end = position + count
    last = end + generated - 1
    program = rng.randrange(len(programs.rows))
    row = programs.rows[program]
    drafted = 0 if row["last_row"] and not row["drafts"] else rng.randint(0, fmt.MAX_DRAFTS)
    if rng.random() < 0.4:  # of the prompt, to its end or not
        generated = drafted = 0
        last, max_new = end - 1, max_new and max(max_new, 1)
        begin = rng.randint(max(position, end - fmt.MAX_TOKENS), end - 1)
        tokens = rng.randint(1, end - begin)
    else:
        begin = rng.randint(max(position, last - 3), last)
        tokens = last - begin + 1 + drafted
    if row["drafts"]:  # only a request that goes on drafts
        max_new = max(max_new, generated + 1)
    asked = Asked(
        position=position,
        count=count,
        max_new=max_new,
        every_logit=rng.random() < 0.3,
        drafts=rng.choice([0, rng.randint(1, fmt.MAX_DRAFTS)]),
        generated=generated,
        drafted=drafted,
        aborted=rng.random() < 0.1,
    )
    ids = list(range(-1, vocab + 1)) if rng.random() < 0.5 else [rng.randrange(vocab)]
    sampled = tuple(rng.choice(ids) for _ in range(tokens))
    drafts = tuple(rng.choice([rng.randrange(vocab), sampled[i % tokens]]) for i in range(drafted))
    stops = [rng.randrange(vocab) for _ in range(rng.randint(0, 2))]
    max_seq_len = last + rng.choice([1, 2, rng.randint(1, 12)])
    return Case(Step(program, 1, begin, tokens, 0), asked, Limits(programs, vocab, max_seq_len, stops), sampled, drafts)


def boundary_cases(programs: fmt.ProgramTable) -> Iterator[Case]:
    """Every combination of values before, at and behind each limit."""
    vocab = 4
    for tokens, count, behind in itertools.product((1, fmt.MAX_TOKENS), (1, 9), (-1, 0)):
        position = 5
        context = max(position + tokens, position + count + behind)
        for id, stops, room in itertools.product((-3, -2, -1, 0, vocab - 1, vocab), ([], [3, 0]), (0, 1, 2)):
            for max_new, logits, aborted in itertools.product((0, 1, 2), (False, True), (False, True)):
                generated = max(0, context - position - count)
                most = max_new and max_new + generated
                if generated and not most:
                    continue
                asked = Asked(position, count, most, logits, generated=generated, aborted=aborted)
                sampled = (*[1] * (tokens - 1), id)
                step = Step(len(programs.rows) - 1, 1, context - tokens, tokens, 0)
                yield Case(step, asked, Limits(programs, vocab, context + room, stops), sampled)


@cache
def compared() -> list[tuple[list[Case], np.ndarray, np.ndarray]]:
    """Thousands of cases, by table of programs: the cases, their records, and what the twin decides."""
    rng = random.Random(1)
    two = np.array([(0, 0, tokens, 0, 0, 0, 0, 0, 1, fmt.NONE, 0, 0) for tokens in (3, 1)], fmt.PROGRAM.dtype)
    two["on_verify"] = fmt.NONE
    groups = [list(boundary_cases(fmt.ProgramTable(two, 0)))]
    for _ in range(60):
        programs = random_table(rng)
        groups.append([random_case(rng, programs) for _ in range(300)])
    return [(cases, rows_of(cases), by_twin(cases)) for cases in groups]


def answers_of(function: Any, cases: list[Case], rows: np.ndarray) -> np.ndarray:
    """What the header decides, as ANSWER records."""
    answers = np.zeros(len(cases), ANSWER)
    arrays = (rows, cases[0].limits.programs.rows, answers)
    function(*(ctypes.c_void_p(array.ctypes.data) for array in arrays), len(cases))
    return answers


def differs(function: Any) -> Case | None:
    """The first case that the header and the twin decide differently."""
    for cases, rows, want in compared():
        answers = answers_of(function, cases, rows)
        answers["known"] = 0
        unequal = np.flatnonzero(answers != want)
        if unequal.size:
            return cases[unequal[0]]
    return None


def test_the_twin_decides_as_the_header(tmp_path: Path) -> None:
    library = build(tmp_path, {"decide_all": RULES.read_text()}, "-Wall", "-Wextra", "-Werror")
    assert differs(library.decide_all) is None


def test_a_follower_that_is_known_follows_whatever_is_sampled(tmp_path: Path) -> None:
    """Known are those after a part of a prompt and after a draft; only an abort can come between."""
    library = build(tmp_path, {"decide_all": RULES.read_text()})
    seen = set()
    for cases, rows, _ in compared():
        answers = answers_of(library.decide_all, cases, rows)
        for case, answer in zip(cases, answers, strict=True):
            draft = bool(case.limits.programs.rows["drafts"][case.step.program])
            prompt = case.step.context < case.asked.end
            seen.add((draft, prompt))
            if not draft and not prompt:
                assert answer["known"] == fmt.NONE
            elif not case.asked.aborted:
                assert (answer["next"]["reason"], answer["next"]["program"]) == (0, answer["known"])
    assert len(seen) == 4


def test_the_cases_come_to_every_end_and_every_kind_of_step() -> None:
    """Otherwise a rule would be compared nowhere."""
    found = np.concatenate([want for _, _, want in compared()])["next"]
    assert set(found["reason"]) == set(fmt.Reason)
    going = found[found["reason"] == fmt.Reason.NO_REASON]
    assert set(going["taken"]) >= {0, 1, 2, 3, 4}
    assert set(going["drafted"]) >= set(range(fmt.MAX_DRAFTS + 1))
    first = np.concatenate([want for _, _, want in compared()])["first"]
    assert {*going["tokens"].tolist(), *first["tokens"].tolist()} == set(range(1, fmt.MAX_TOKENS + 1))
    assert set(going["program"]) == set(range(fmt.MAX_PROGRAMS))
    assert set(going["flags"]) == {0, fmt.NEEDS_LOGITS}
    assert len(found) > 8000


ABORT = "  if (asked.aborted) return {ABORTED, 0, 0, 0, 0, 0, 0, 0};\n"
PROGRAM = "  const StepProgram& program = limits.programs[step.program];\n"
ALONE = "  if (asked.max_new == 0) return {MAX_NEW, 0, 0, 0, 0, 0, 0, 0};\n"
BAD = "    if (uint32_t(id) >= limits.vocab) {"
STOP = "    for (uint32_t i = 0; i < limits.stop_count; ++i)\n      if (stop(i) == id) next.reason = STOP_ID;\n"
GOING = "if (next.reason == NO_REASON && "
MOST = "asked.generated + next.taken >= asked.max_new) next.reason = MAX_NEW;\n"
FULL = "last + next.taken >= limits.max_seq_len) next.reason = CONTEXT_FULL;\n"
BREAK = "if (first + next.taken >= step.tokens || draft(next.taken - 1) != id) break;"
MISTAKES = {
    "an abort is overlooked": [("if (asked.aborted)", "if (false)")],
    "the prompt's last id is fed twice": [
        ("  if (step.context < end)\n    return", "  if (step.context <= end)\n    return")
    ],
    "a prompt alone samples": [(ALONE, ALONE.replace("== 0", "== 1"))],
    "the first token's row counts": [("program.last_row ? 0 : first", "0")],
    "the last row isn't the only one": [("program.last_row ? 0 : first", "first")],
    "an id behind the vocabulary": [(BAD, BAD.replace(">=", ">"))],
    "an infinite logit isn't told apart": [("id == NOT_FINITE_ID ? NOT_FINITE", "id == NOT_FINITE_ID ? BAD_ID")],
    "a negative id": [(BAD, BAD.replace("uint32_t(id) >= limits.vocab", "id >= int32_t(limits.vocab)"))],
    "the last stop id is overlooked": [(STOP, STOP.replace("i <", "i + 1 <"))],
    "a token too many": [(MOST, MOST.replace(">=", ">"))],
    "the caches overflow": [(FULL, FULL.replace(">=", ">"))],
    "the prompt's program goes on": [
        (
            "step_at(program.on_token, newest, 1, true);\n  next.row",
            "step_at(program.on_prompt, newest, 1, true);\n  next.row",
        )
    ],
    "requests begin with program 0": [("programs[limits.first_program], asked", "programs[0], asked")],
    "ids behind the prompt": [("left < most ? left : most", "most")],
    "more ids than a program takes": [("left < most ? left : most", "left")],
    "one id like several": [("left == 1 ? from.on_single : ", "")],
    "every logit by the prompt's program": [("asked.every_logit ? from.on_every : ", "")],
    "logits come too late": [("asked.every_logit || tokens == left", "asked.every_logit")],
    "logits in every step": [("asked.every_logit || tokens == left", "true")],
    "the token is lost": [("next.taken = taken", "next.taken = 0")],
    "another context": [("next.position + next.tokens", "next.position + 1")],
    "fed beyond the prompt": [("(context < end ? context : end)", "(end < context ? context : end)")],
    "an abort comes behind the prompt": [(ABORT, ""), (ALONE, ABORT + ALONE)],
    "a prompt alone ends early": [(ALONE, ""), ("  const bool drafts = ", ALONE + "  const bool drafts = ")],
    "the limit comes before the stop id": [
        (STOP + "    " + GOING + MOST, "    " + GOING + MOST + STOP.replace("if (stop", GOING + "stop"))
    ],
    "full caches come before the limit": [(GOING + MOST + "    " + GOING + FULL, GOING + FULL + "    " + GOING + MOST)],
    "a draft is accepted unseen": [("draft(next.taken - 1) != id", "false")],
    "another draft decides": [("draft(next.taken - 1)", "draft(next.taken)")],
    "no draft is accepted": [(BREAK, "break;")],
    "rejected ids are extended": [("step.position, first + taken, true", "step.position, step.tokens, true")],
    "an extension without logits": [("first + taken, true", "first + taken, false")],
    "a chunk's extension with logits": [("step.position, step.tokens, false", "step.position, step.tokens, true")],
    "a chunk isn't extended": [("    return drafts ? step_at", "    return false ? step_at")],
    "drafts without being asked for": [("asked.drafts && asked.max_new && program", "asked.max_new && program")],
    "drafts for a prompt alone": [("asked.drafts && asked.max_new && program", "asked.drafts && program")],
    "drafts beyond those asked for": [("  if (asked.drafts < depth) depth = asked.drafts;\n", "")],
    "drafts beyond the last token": [
        ("  if (asked.max_new - generated - 1 < depth) depth = asked.max_new - generated - 1;\n", "")
    ],
    "drafts beyond the caches": [
        ("  if (limits.max_seq_len - newest - 1 < depth) depth = limits.max_seq_len - newest - 1;\n", "")
    ],
    "drafts beyond what is verified": [
        ("limits.programs[from.on_verify].tokens - 1", "limits.programs[from.on_verify].tokens")
    ],
    "a draft too many": [("drafted < depth_of(", "drafted <= depth_of(")],
    "a draft outside the vocabulary": [("uint32_t(id) < limits.vocab ? id : 0", "id")],
    "a draft from the newest token again": [
        ("step_at(program.on_draft, step.context", "step_at(program.on_draft, newest")
    ],
    "the newest token isn't verified": [("newest, 1 + drafted", "newest, drafted")],
    "verification begins behind": [("program.on_verify, newest,", "program.on_verify, step.context,")],
    "the draft is lost": [("next.drafted = drafted", "next.drafted = asked.drafted")],
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
