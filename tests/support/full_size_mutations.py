"""Mutations of a full-size plan, on its tables as arrays: each is surely wrong, in any layer, device and exchange.

A lost edge is only counted where the two instructions touch the same memory and, by a search backwards through the
changed tables, no other path orders them; what reads, or is in, the wrong place is wrong in any case.
Run as a script it mutates engines and proves them again:

    python tests/support/full_size_mutations.py ENGINE… --count 500
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilecompile.runtime import format as fmt
from tilecompile.runtime.folder.manifest import Manifest, read_manifest
from tilecompile.runtime.folder.operators import read_operators
from tilecompile.runtime.folder.rows import owners
from tilecompile.runtime.folder.tables import arena_sizes, load_tables
from tilecompile.verify.proof import Memory, Proof, VerifyError, verify
from tilecompile.verify.windows import Proved

Tables = dict[str, np.ndarray]


class Plan:
    """The tables of an engine with the notifiers of each event, and its proof, in which equal parts are found again."""

    def __init__(self, engine: Path) -> None:
        self.manifest: Manifest = read_manifest(engine)
        self.tables: Tables = load_tables(self.manifest)
        self.memory = Memory(arena_sizes(self.manifest).astype("int64"))
        self.proved = Proved()
        t = self.tables
        streams = t["streams"]
        self.stream = owners(streams["end"] - streams["begin"])
        self.operators: list[str] = self.manifest.data["operators"]
        self.layers = [operator.layer for operator in read_operators(self.manifest)]
        self.maker = owners(t["instructions"]["notify_count"])
        self.by_event = np.argsort(t["notifies"]["event"], kind="stable")
        events = np.arange(len(t["events"]) + 1)
        self.bounds = np.searchsorted(t["notifies"]["event"][self.by_event], events)
        self.commit = int(np.flatnonzero(t["instructions"]["kind"] == fmt.COMMIT_KIND)[0])

    def prove(self, tables: Tables) -> Proof:
        """The proof of tables, whose unchanged parts are those of the plan."""
        data = self.manifest.data
        names = [b["tensor"] for b in data["buffers"]], data["weights"]["tensors"]
        return verify(tables, self.operators, self.memory, *names, proved=self.proved, layers=self.layers)

    def makers(self, event: int) -> np.ndarray:
        """The instructions that notify an event, in the plan."""
        return self.maker[self.by_event[self.bounds[event] : self.bounds[event + 1]]]

    def rows(self, table: str, field: str, i: int) -> np.ndarray:
        """The numbers of an instruction's rows of a table."""
        ins = self.tables["instructions"][i]
        return np.arange(int(ins[f"{field}_begin"]), int(ins[f"{field}_begin"]) + int(ins[f"{field}_count"]))

    def conflict(self, a: int, b: int) -> bool:
        """Whether two instructions touch the same elements, one of them writing."""
        regions = self.tables["regions"]
        for r in regions[self.rows("regions", "region", a)]:
            for q in regions[self.rows("regions", "region", b)]:
                meets = r["row_begin"] < q["row_end"] and q["row_begin"] < r["row_end"]
                meets = meets and r["col_begin"] < q["col_end"] and q["col_begin"] < r["col_end"]
                if r["buffer"] == q["buffer"] and meets and fmt.WRITE in (r["mode"], q["mode"]):
                    return True
        return False

    def follows(self, later: int, earlier: int, without: tuple[int, int] | None, waits: dict[int, list[int]]) -> bool:
        """Whether a path leads from one instruction to another; `waits` has the events of some instructions that were
        changed, `without` an (instruction, event) that is no longer notified. Operators are in order."""
        t = self.tables
        least = t["instructions"]["op"][earlier]
        found, left, events = {later}, [later], set()
        while left:
            i = left.pop()
            near = [i - 1] if i > t["streams"]["begin"][self.stream[i]] else []
            awaited = waits.get(i)
            if awaited is None:
                awaited = t["waits"]["event"][self.rows("waits", "wait", i)].tolist()
            for e in awaited:
                if e not in events:
                    events.add(e)
                    near += [int(m) for m in self.makers(e) if (int(m), e) != without]
            for m in near:
                if m == earlier:
                    return True
                if m not in found and t["instructions"]["op"][m] >= least:
                    found.add(m)
                    left.append(m)
        return False


@dataclass(frozen=True)
class Mutation:
    """Tables with one fault, and where it is."""

    tables: Tables
    where: int


Kind = Callable[[Plan, random.Random], Mutation | None]
"""Makes a mutation; None where a try failed."""


def edited(plan: Plan, *names: str) -> Tables:
    """The tables with copies of those to change."""
    return {**plan.tables, **{name: plan.tables[name].copy() for name in names}}


def some(plan: Plan, rng: random.Random, field: str) -> int:
    """An instruction that has rows of a field."""
    counts = plan.tables["instructions"][f"{field}_count"]
    while not counts[i := rng.randrange(len(counts))]:
        pass
    return i


def threshold(plan: Plan, rng: random.Random) -> Mutation | None:
    """Of one wait, or of an event and all its waits."""
    i = some(plan, rng, "wait")
    row = rng.choice(plan.rows("waits", "wait", i).tolist())
    t = edited(plan, "waits", "events")
    step = rng.choice([1, -1])
    if rng.random() < 0.5:
        t["waits"]["count"][row] = int(t["waits"]["count"][row]) + step
    else:
        event = int(t["waits"]["event"][row])
        count = int(t["events"]["wait_count"][event]) + step
        t["events"]["wait_count"][event] = t["waits"]["count"][t["waits"]["event"] == event] = count
    return Mutation(t, i)


def notify_lost(plan: Plan, rng: random.Random) -> Mutation | None:
    """Some wait for more than they get."""
    i = some(plan, rng, "notify")
    t = edited(plan, "instructions")
    t["instructions"]["notify_count"][i] -= 1
    return Mutation(t, i)


def notify_elsewhere(plan: Plan, rng: random.Random) -> Mutation | None:
    """The next event is notified in the place of another one."""
    i = some(plan, rng, "notify")
    t = edited(plan, "notifies")
    row = rng.choice(plan.rows("notifies", "notify", i).tolist())
    t["notifies"]["event"][row] = (int(t["notifies"]["event"][row]) + 1) % len(t["events"])
    return Mutation(t, i)


def wait_lost(plan: Plan, rng: random.Random) -> Mutation | None:
    """A wait that orders an instruction after another whose memory it touches."""
    return _wait_lost(plan, rng, some(plan, rng, "wait"))


def _wait_lost(plan: Plan, rng: random.Random, i: int) -> Mutation | None:
    rows = plan.rows("waits", "wait", i).tolist()
    row = rng.choice(rows)
    t = edited(plan, "waits", "instructions")
    event = int(t["waits"]["event"][row])
    rest = [int(e) for e in t["waits"]["event"][rows] if e != event]
    maker = int(rng.choice(plan.makers(event).tolist()))
    if i != plan.commit and not plan.conflict(maker, i):
        return None
    if plan.follows(i, maker, None, {i: rest}):
        return None
    t["waits"][row] = t["waits"][rows[-1]]
    t["instructions"]["wait_count"][i] -= 1
    return Mutation(t, i)


def edge_lost(plan: Plan, rng: random.Random) -> Mutation | None:
    """One producer less, and thresholds that agree: only the order is lost."""
    i = some(plan, rng, "notify")
    rows = plan.rows("notifies", "notify", i).tolist()
    row = rng.choice(rows)
    t = edited(plan, "notifies", "instructions", "waits", "events")
    event = int(t["notifies"]["event"][row])
    if len(plan.makers(event)) < 2:
        return None
    waiting = np.flatnonzero(t["waits"]["event"] == event)
    begin = t["instructions"]["wait_begin"].astype(np.int64)
    later = int(np.searchsorted(begin, rng.choice(waiting.tolist()), side="right")) - 1
    while not t["instructions"]["wait_count"][later]:
        later -= 1
    if not plan.conflict(i, later) or plan.follows(later, i, (i, event), {}):
        return None
    t["notifies"][row] = t["notifies"][rows[-1]]
    t["instructions"]["notify_count"][i] -= 1
    t["waits"]["count"][waiting] -= 1
    t["events"]["wait_count"][event] -= 1
    return Mutation(t, i)


def swapped(plan: Plan, rng: random.Random) -> Mutation | None:
    """Two instructions of a worker, of which the second reads scratch memory that the first writes."""
    regions, buffers = plan.tables["regions"], plan.tables["buffers"]
    a = rng.randrange(len(plan.stream))
    for b in range(a + 1, min(a + 40, len(plan.stream))):
        if plan.stream[b] != plan.stream[a]:
            break
        wrote = regions[plan.rows("regions", "region", a)]
        wrote = wrote[(wrote["mode"] == fmt.WRITE) & (buffers["arena"][wrote["buffer"]] == 0)]
        read = regions[plan.rows("regions", "region", b)]
        read = read[(read["mode"] == fmt.READ) & np.isin(read["buffer"], wrote["buffer"])]
        if len(read) and plan.conflict(a, b):
            t = edited(plan, "instructions")
            t["instructions"][[a, b]] = t["instructions"][[b, a]]
            return Mutation(t, a)
    return None


def write_short(plan: Plan, rng: random.Random) -> Mutation | None:
    """An instruction writes a column less, which another one reads."""
    regions, buffers = plan.tables["regions"], plan.tables["buffers"]
    r = rng.randrange(len(regions))
    region = regions[r]
    if region["mode"] != fmt.WRITE or buffers["arena"][region["buffer"]] != 0 or region["col_end"] < 1:
        return None
    last = region["col_end"] - 1
    same = regions[regions["buffer"] == region["buffer"]]
    same = same[(same["row_begin"] < region["row_end"]) & (region["row_begin"] < same["row_end"])]
    reads = same[(same["mode"] == fmt.READ) & (same["col_begin"] <= last) & (last < same["col_end"])]
    if not len(reads):
        return None
    t = edited(plan, "regions")
    t["regions"]["col_end"][r] = last
    owner = int(np.searchsorted(plan.tables["instructions"]["region_begin"], r, side="right")) - 1
    return Mutation(t, owner)


def pushed_elsewhere(plan: Plan, rng: random.Random) -> Mutation | None:
    """An exchange goes to a buffer of another device."""
    i = rng.randrange(len(plan.stream))
    regions, buffers = plan.tables["regions"], plan.tables["buffers"]
    here = int(plan.tables["streams"]["device"][plan.stream[i]])
    rows = [
        int(r)
        for r in plan.rows("regions", "region", i)
        if regions["mode"][r] == fmt.WRITE and buffers["device"][regions["buffer"][r]] != here
    ]
    if not rows:
        return None
    row = rng.choice(rows)
    of = buffers[regions["buffer"][row]]
    same = (buffers["rows"] == of["rows"]) & (buffers["cols"] == of["cols"]) & (buffers["device"] != of["device"])
    others = np.flatnonzero(same & (buffers["arena"] == of["arena"]))
    if not len(others):
        return None
    t = edited(plan, "regions")
    t["regions"]["buffer"][row] = rng.choice(others.tolist())
    return Mutation(t, i)


def aliased(plan: Plan, rng: random.Random) -> Mutation | None:
    """A buffer of the decode program is placed on another one."""
    buffers = plan.tables["buffers"]
    programs = [b["program"] for b in plan.manifest.data["buffers"]]
    a = rng.randrange(len(buffers))
    same = np.flatnonzero((buffers["device"] == buffers["device"][a]) & (buffers["arena"] == buffers["arena"][a]))
    same = np.array([b for b in same.tolist() if b != a and programs[b] == programs[a]], np.int64)
    if not len(same) or not buffers["bytes"][a]:
        return None
    t = edited(plan, "buffers")
    t["buffers"]["offset"][a] = buffers["offset"][rng.choice(same.tolist())]
    return Mutation(t, -1)


def run_doubled(plan: Plan, rng: random.Random) -> Mutation | None:
    """A worker reads another tile of its device in the place of its own."""
    i = some(plan, rng, "tape")
    row = rng.choice(plan.rows("tape", "tape", i).tolist())
    device = plan.tables["streams"]["device"][plan.stream[i]]
    tiles, tape = plan.tables["tiles"], plan.tables["tape"]
    mine = tiles[tape["tile"][row]]
    others = np.flatnonzero((tiles["device"] == device) & (tiles["gathered"] == mine["gathered"]))
    other = int(rng.choice(others))
    if other == tape["tile"][row]:
        return None
    t = edited(plan, "tape")
    entry = tiles[other]
    stride = entry["bytes"] if entry["gathered"] else 0
    t["tape"][row] = (entry["offset"], entry["bytes"], stride, tape["slot"][row], other)
    return Mutation(t, i)


def run_moved(plan: Plan, rng: random.Random) -> Mutation | None:
    """A worker reads a cache line beside its tile."""
    i = some(plan, rng, "tape")
    t = edited(plan, "tape")
    t["tape"]["offset"][rng.choice(plan.rows("tape", "tape", i).tolist())] += 64
    return Mutation(t, i)


def tile_wrong(plan: Plan, rng: random.Random) -> Mutation | None:
    """A tile is placed on another one, or is of other rows."""
    i = rng.randrange(len(plan.tables["tiles"]))
    t = edited(plan, "tiles")
    if rng.random() < 0.5:
        t["tiles"]["offset"][i] += 64
    else:
        size = int(t["tiles"]["row_end"][i]) - int(t["tiles"]["row_begin"][i])
        step = -size if t["tiles"]["row_begin"][i] >= size else size
        t["tiles"]["row_begin"][i] = int(t["tiles"]["row_begin"][i]) + step
        t["tiles"]["row_end"][i] = int(t["tiles"]["row_end"][i]) + step
    return Mutation(t, -1)


def sink_early(plan: Plan, rng: random.Random) -> Mutation | None:
    """The step ends without waiting for some instruction, or it ends twice, or an event is another program's."""
    how = rng.randrange(4)
    if how == 0:
        return _wait_lost(plan, rng, plan.commit)
    t = edited(plan, "instructions", "events", "streams")
    if how == 1:
        i = rng.randrange(len(plan.stream))
        if i == plan.commit:
            return None
        t["instructions"]["kind"][i] = fmt.COMMIT_KIND
    elif how == 2:
        i = rng.randrange(len(t["events"]))
        t["events"]["program"][i] ^= 1
    else:
        i = rng.randrange(len(t["streams"]))
        if t["streams"]["begin"][i] == t["streams"]["end"][i]:
            return None
        t["streams"]["end"][i] -= 1
    return Mutation(t, -1)


KINDS: tuple[Kind, ...] = (
    *(threshold, notify_lost, notify_elsewhere, wait_lost, edge_lost, swapped, write_short, pushed_elsewhere),
    *(aliased, run_doubled, run_moved, tile_wrong, sink_early),
)


def mutations(plan: Plan, count: int, seed: int) -> list[tuple[str, int, Any]]:
    """Makes `count` mutations, kind after kind, and proves each: name, instruction, and the proof's error or None."""
    rng = random.Random(seed)
    out: list[tuple[str, int, Any]] = []
    while len(out) < count:
        kind = KINDS[len(out) % len(KINDS)]
        found = None
        while found is None:
            found = kind(plan, rng)
        try:
            plan.prove(found.tables)
            said = None
        except VerifyError as error:
            said = str(error)
        out.append((kind.__name__, found.where, said))
    return out


def main() -> int:
    """Mutates engines and prints the outcomes; the exit code is the number of faults that were not found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engines", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=500, help="mutations of all engines together")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begin, missed = time.perf_counter(), 0
    for k, engine in enumerate(args.engines):
        plan = Plan(engine)
        first = plan.prove(plan.tables)
        start = time.perf_counter()
        count = (k + 1) * args.count // len(args.engines) - k * args.count // len(args.engines)
        found = mutations(plan, count, args.seed + k)
        seconds = time.perf_counter() - start
        lost = [(name, where) for name, where, said in found if said is None]
        missed += len(lost)
        words = Counter(name for name, _, said in found if said is not None)
        print(
            f"{engine}: proved in {first.seconds:.1f} s; {count} mutations in {seconds:.0f} s, refused: {dict(words)}"
        )
        print(f"  not refused: {lost}")
    print(f"all: {time.perf_counter() - begin:.0f} s")
    return missed


if __name__ == "__main__":
    raise SystemExit(main())
