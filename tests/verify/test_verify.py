"""The proof: accepts what the scheduler makes, and agrees with an oracle on random changes of it."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable

import numpy as np
import pytest

from support.small import glm5_program
from support.table_tools import Ins, Parts, Stream, changed, correct, put_together, take_apart
from tilecompile.runtime import format as fmt
from tilecompile.verify.proof import Proof, VerifyError, verify

WORKERS = (1, 2, 3, 5, 16)
PROGRAM = 1
"""Mutations change the draft program: it is smaller, and the proof must hold for every program."""

Mutation = Callable[[Parts, random.Random], None]


def prove(parts: Parts) -> Proof:
    """The proof over the parts' tables."""
    return verify(put_together(parts), glm5_program(3).operators, stated=False)


@functools.cache
def original() -> Parts:
    return take_apart(glm5_program(3).tables)


def refused(parts: Parts) -> str | None:
    """The proof's error about the parts."""
    try:
        prove(parts)
    except VerifyError as error:
        return str(error)
    return None


@pytest.mark.parametrize("workers", WORKERS)
def test_the_proof_accepts_what_the_scheduler_makes(workers: int) -> None:
    program = glm5_program(workers)
    proof = verify(program.tables, program.operators)
    assert proof.instructions == len(program.tables["instructions"])
    assert proof.edges == len(program.tables["waits"])
    assert proof.pairs > 0
    assert str(proof).startswith(f"{proof.instructions} instructions, ")


# --- mutations; those below MUST are wrong whatever they hit --------------------------------------------------------


def some(parts: Parts, rng: random.Random, having: Callable[[Ins], object] = bool) -> tuple[Stream, int, Ins]:
    """A random instruction of the program that has something."""
    found = [(s, k, i) for s in parts.of(PROGRAM) for k, i in enumerate(s.instructions) if having(i)]
    return rng.choice(found)


def drop_wait(parts: Parts, rng: random.Random) -> None:
    waits = some(parts, rng, lambda i: i.waits)[2].waits
    waits.pop(rng.randrange(len(waits)))


def drop_edge(parts: Parts, rng: random.Random) -> None:
    """A wait and all that notifies it: counts stay right, only the order is lost."""
    event = some(parts, rng, lambda i: i.waits)[2].waits[0][0]
    for i in parts.instructions(PROGRAM):
        i.waits = [w for w in i.waits if w[0] != event]
        i.notifies = [n for n in i.notifies if n[0] != event]


def swap(parts: Parts, rng: random.Random) -> None:
    s = rng.choice(parts.of(PROGRAM))
    a, b = rng.sample(range(len(s.instructions)), 2)
    s.instructions[a], s.instructions[b] = s.instructions[b], s.instructions[a]


def swap_neighbours(parts: Parts, rng: random.Random) -> None:
    s = rng.choice(parts.of(PROGRAM))
    a = rng.randrange(len(s.instructions) - 1)
    s.instructions[a : a + 2] = s.instructions[a : a + 2][::-1]


def move(parts: Parts, rng: random.Random) -> None:
    """To another worker, at its operator's place in the order."""
    s, k, ins = some(parts, rng)
    s.instructions.pop(k)
    other = rng.choice([o for o in parts.of(PROGRAM) if o is not s])
    other.instructions.insert(sum(i.op < ins.op for i in other.instructions), ins)


def move_anywhere(parts: Parts, rng: random.Random) -> None:
    s, k, ins = some(parts, rng)
    s.instructions.pop(k)
    other = rng.choice(parts.of(PROGRAM))
    other.instructions.insert(rng.randint(0, len(other.instructions)), ins)


def change_box(parts: Parts, rng: random.Random) -> None:
    ins = some(parts, rng, lambda i: i.regions)[2]
    k = rng.randrange(len(ins.regions))
    region = list(ins.regions[k])
    rows, cols = parts.buffers[region[0]][4:6]
    region[4] = rng.randrange(cols)
    region[5] = rng.randint(region[4] + 1, cols)
    region[3] = rng.randint(region[2] + 1, rows) if region[2] < rows else rows
    ins.regions[k] = tuple(region)


def turn_read_into_write(parts: Parts, rng: random.Random) -> None:
    ins = some(parts, rng, lambda i: i.regions)[2]
    k = rng.randrange(len(ins.regions))
    ins.regions[k] = (ins.regions[k][0], fmt.WRITE, *ins.regions[k][2:])


def drop_region(parts: Parts, rng: random.Random) -> None:
    ins = some(parts, rng, lambda i: i.regions)[2]
    ins.regions.pop(rng.randrange(len(ins.regions)))


def add_wait(parts: Parts, rng: random.Random) -> None:
    """Harmless unless it closes a cycle."""
    event = some(parts, rng, lambda i: i.notifies)[2].notifies[0][0]
    some(parts, rng)[2].waits.append((event, parts.events[event][2]))


MAY = (
    drop_wait,
    drop_edge,
    swap,
    swap_neighbours,
    move,
    move_anywhere,
    change_box,
    turn_read_into_write,
    drop_region,
    add_wait,
)


def threshold(step: int) -> Mutation:
    def change(parts: Parts, rng: random.Random) -> None:
        waits = some(parts, rng, lambda i: i.waits)[2].waits
        k = rng.randrange(len(waits))
        waits[k] = (waits[k][0], waits[k][1] + step)

    return change


def both_thresholds(parts: Parts, rng: random.Random) -> None:
    """The wait and the event agree with each other, but not with the notifications."""
    event = some(parts, rng, lambda i: i.waits)[2].waits[0][0]
    step = rng.choice([-1, 1])
    for i in parts.instructions(PROGRAM):
        i.waits = [(e, c + step if e == event else c) for e, c in i.waits]
    program, device, count, tensor = parts.events[event]
    parts.events[event] = (program, device, count + step, tensor)


def stated_count(parts: Parts, rng: random.Random) -> None:
    event = some(parts, rng, lambda i: i.waits)[2].waits[0][0]
    program, device, count, tensor = parts.events[event]
    parts.events[event] = (program, device, count + 1, tensor)


def drop_notify(parts: Parts, rng: random.Random) -> None:
    notifies = some(parts, rng, lambda i: i.notifies)[2].notifies
    notifies.pop(rng.randrange(len(notifies)))


def repeat_notify(parts: Parts, rng: random.Random) -> None:
    notifies = some(parts, rng, lambda i: i.notifies)[2].notifies
    notifies.append(rng.choice(notifies))


def redirect_notify(parts: Parts, rng: random.Random) -> None:
    notifies = some(parts, rng, lambda i: i.notifies)[2].notifies
    k = rng.randrange(len(notifies))
    events = [e for e, (program, *_) in enumerate(parts.events) if program == PROGRAM and e != notifies[k][0]]
    notifies[k] = (rng.choice(events), notifies[k][1])


def notify_other_program(parts: Parts, rng: random.Random) -> None:
    notifies = some(parts, rng, lambda i: i.notifies)[2].notifies
    notifies[0] = (next(e for e, row in enumerate(parts.events) if row[0] != PROGRAM), 0)


def wait_for_other_program(parts: Parts, rng: random.Random) -> None:
    event, row = next((e, row) for e, row in enumerate(parts.events) if row[0] != PROGRAM)
    some(parts, rng)[2].waits.append((event, row[2]))


def cycle(parts: Parts, rng: random.Random) -> None:
    """An instruction also waits for one that comes after it."""
    found = [(a, b) for s in parts.of(PROGRAM) for k, a in enumerate(s.instructions) for b in s.instructions[k:]]
    a, b = rng.choice([(a, b) for a, b in found if b.notifies])
    event = b.notifies[0][0]
    a.waits.append((event, parts.events[event][2]))


def second_commit(parts: Parts, rng: random.Random) -> None:
    ins = some(parts, rng, lambda i: not i.commit)[2]
    ins.record["kind"] = fmt.COMMIT_KIND


def no_commit(parts: Parts, rng: random.Random) -> None:
    some(parts, rng, lambda i: i.commit)[2].record["kind"] = 1


def after_the_sink(parts: Parts, rng: random.Random) -> None:
    """An instruction that touches nothing and that no instruction waits for."""
    ins = changed(Parts([Stream(0, 0, 0, 0, [some(parts, rng, lambda i: not i.commit)[2]])], [], [])).instructions()[0]
    ins.waits, ins.notifies, ins.regions = [], [], []
    rng.choice(parts.of(PROGRAM)).instructions.append(ins)


def reverse(parts: Parts, rng: random.Random) -> None:
    """A worker's stream backwards; what it waits for deadlocks it."""
    s = rng.choice(parts.of(PROGRAM))
    s.instructions.reverse()


def unwritten_read(parts: Parts, rng: random.Random) -> None:
    """A task also reads a buffer of scratch memory that is written only later, or never."""
    scratch = fmt.ARENAS.index("activation")
    used = {r[0] for i in parts.instructions(PROGRAM) for r in i.regions}
    buffer = rng.choice([b for b, row in enumerate(parts.buffers) if row[1] == scratch and b not in used])
    some(parts, rng)[2].regions.append((buffer, fmt.READ, 0, 1, 0, 1))


def write_to_weights(parts: Parts, rng: random.Random) -> None:
    buffer = next(b for b, row in enumerate(parts.buffers) if row[1] == fmt.ARENAS.index("weight"))
    some(parts, rng)[2].regions.append((buffer, fmt.WRITE, 0, 1, 0, 1))


def outside_of_buffer(parts: Parts, rng: random.Random) -> None:
    ins = some(parts, rng, lambda i: i.regions)[2]
    k = rng.randrange(len(ins.regions))
    buffer, mode, r0, r1, c0, _ = ins.regions[k]
    ins.regions[k] = (buffer, mode, r0, r1, c0, parts.buffers[buffer][5] + 1)


MUST = {
    "threshold up": threshold(1),
    "threshold down": threshold(-1),
    "both thresholds": both_thresholds,
    "stated count": stated_count,
    "notify dropped": drop_notify,
    "notify repeated": repeat_notify,
    "notify redirected": redirect_notify,
    "notify of another program": notify_other_program,
    "wait for another program": wait_for_other_program,
    "cycle": cycle,
    "second commit": second_commit,
    "no commit": no_commit,
    "after the sink": after_the_sink,
    "reversed": reverse,
    "unwritten read": unwritten_read,
    "write to weights": write_to_weights,
    "outside of its buffer": outside_of_buffer,
}
NAMED = re.compile(r"instruction \d+ \(\S+ tile \(\d+, \d+, \d+\)\)")


@pytest.mark.parametrize("name", MUST)
def test_wrong_programs_are_refused_by_instruction(name: str) -> None:
    for seed in range(12):
        parts = changed(original())
        MUST[name](parts, random.Random(seed))
        text = refused(parts)
        assert text is not None, f"{name}, seed {seed}"
        assert NAMED.search(text) or name == "no commit", text
        assert "\n" not in text


@pytest.mark.parametrize("mutation", MAY, ids=lambda m: m.__name__)
def test_the_proof_agrees_with_the_oracle_on_each_mutation(mutation: Mutation) -> None:
    verdicts = []
    for seed in range(30):
        parts = changed(original())
        mutation(parts, random.Random(seed))
        want = correct(parts, PROGRAM)
        text = refused(parts)
        assert (text is None) == want, f"seed {seed}: {text or 'accepted'}"
        assert text is None or NAMED.search(text), text
        verdicts.append(want)
    assert not all(verdicts), "no mutation was wrong"


def test_the_proof_agrees_with_the_oracle_on_several_mutations() -> None:
    for seed in range(100):
        rng = random.Random(seed)
        parts = changed(original())
        for mutation in rng.choices(MAY, k=rng.randint(1, 3)):
            mutation(parts, rng)
        text = refused(parts)
        assert (text is None) == correct(parts, PROGRAM), f"seed {seed}: {text or 'accepted'}"


def test_dropped_edges_name_both_tasks() -> None:
    for seed in range(10):
        parts = changed(original())
        drop_edge(parts, random.Random(seed))
        text = refused(parts)
        assert text is not None
        assert len(NAMED.findall(text)) == 2 or "not all of it written" in text, text


def test_malformed_tables_are_refused() -> None:
    """Faults of the tables themselves, which the oracle doesn't check."""
    program = glm5_program(3)

    def with_table(name: str, change: Callable[[np.ndarray], None]) -> str:
        tables = dict(program.tables) | {name: program.tables[name].copy()}
        change(tables[name])
        with pytest.raises(VerifyError) as caught:
            verify(tables, program.operators)
        return str(caught.value)

    def longer(streams: np.ndarray) -> None:
        streams["end"][0] += 1

    def shorter(streams: np.ndarray) -> None:
        streams["end"][0] -= 1

    def overlapping(buffers: np.ndarray) -> None:
        mine = np.flatnonzero(buffers["arena"] == 0)
        buffers["offset"][mine[1]] = buffers["offset"][mine[0]]

    assert "is in 2 streams, want 1" in with_table("streams", longer)
    assert "is in 0 streams, want 1" in with_table("streams", shorter)
    assert re.search(r"buffer \d+ and buffer \d+ overlap in arena activation", with_table("buffers", overlapping))
