"""An oracle that decides whether tables are right, independent of `verify` and slow: the definitions, literally.

Happens-before is plain reachability in the graph of instructions: an edge from each instruction to the next of its
stream, and from every instruction that notifies an event to every one that waits for all its notifications. A wait for
fewer gives no order at all. It is wrong in any case: each run leaves the counter further ahead of the threshold, until
their difference no longer fits the kernel's wrap-safe comparison and the wait never ends; a wait for more never ends in
the first run. Sets of instructions and of elements are the bits of Python's integers.

Memory is compared element by element. The elements are those of the declared regions: that a body touches no others is
what the tests of the regions show, so declared and real accesses stand for each other. Steps are unrolled: every step
program is followed by every step program, whose instructions all come after the first one's commit and nothing else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import combinations, product
from typing import Any

import numpy as np

from tilecompile.runtime import format as fmt

Tables = Mapping[str, np.ndarray]
Row = dict[str, Any]
Edges = dict[Any, set[Any]]
Touched = dict[int, list[tuple[Any, bool, int]]]
"""By buffer: node, whether it writes, elements."""

LINE = 64


def wrong(tables: Tables, unroll: bool = True) -> str | None:
    """What is wrong with the tables, in a word and a few numbers; None for right ones."""
    t = {
        name: [dict(zip(rows.dtype.names, row, strict=True)) for row in rows.tolist()] for name, rows in tables.items()
    }
    streams = t["streams"]
    agents = Counter((s["program"], s["worker"], s["agent"]) for s in streams)
    if max(agents.values()) > 1:
        return "streams: an agent has two"
    times = Counter(i for s in streams for i in range(s["begin"], s["end"]))
    if any(times[i] != 1 for i in range(len(t["instructions"]))):
        return "streams: an instruction is not in one"
    return layout(t) or next(filter(None, (step(t, p) for p in programs(t))), None) or (steps(t) if unroll else None)


def programs(t: dict[str, list[Row]]) -> list[int]:
    """Numbers of the step programs."""
    return sorted({s["program"] for s in t["streams"]})


def members(t: dict[str, list[Row]], program: int) -> list[list[int]]:
    """Instructions of each stream of a program."""
    return [list(range(s["begin"], s["end"])) for s in t["streams"] if s["program"] == program]


def part(t: dict[str, list[Row]], i: int, table: str, prefix: str) -> list[Row]:
    """Rows that an instruction refers to."""
    ins = t["instructions"][i]
    return t[table][ins[f"{prefix}_begin"] : ins[f"{prefix}_begin"] + ins[f"{prefix}_count"]]


def elements(box: Row, cols: int) -> int:
    """The elements of a region as bits."""
    line = (1 << max(0, box["col_end"] - box["col_begin"])) - 1
    return sum(line << (r * cols + box["col_begin"]) for r in range(box["row_begin"], box["row_end"]))


def layout(t: dict[str, list[Row]]) -> str | None:
    """Regions outside of buffers, spans of memory that overlap or are not aligned."""
    for i in range(len(t["instructions"])):
        for r in part(t, i, "regions", "region"):
            b = t["buffers"][r["buffer"]]
            if r["row_end"] > b["rows"] or r["col_end"] > b["cols"]:
                return f"region of {i}: outside of its buffer"
            if r["mode"] == fmt.WRITE and fmt.ARENAS[b["arena"]] == "weight":
                return f"region of {i}: writes to the weights"
    users: dict[int, set[int]] = defaultdict(set)
    for p in programs(t):
        for i in (i for stream in members(t, p) for i in stream):
            for table, prefix in (("regions", "region"), ("operands", "operand")):
                for r in part(t, i, table, prefix):
                    users[r["buffer"]].add(p)
    everyone = set(programs(t))
    spans = [
        (b["device"], fmt.ARENAS[b["arena"]], b["offset"], b["offset"] + b["bytes"], users[i] or everyone)
        for i, b in enumerate(t["buffers"])
    ]
    for tile in t["tiles"]:
        end = tile["offset"] + tile["bytes"] * tile["copies"]
        spans.append((tile["device"], "weight", tile["offset"], end, everyone))
    if any(s[2] % LINE for s in spans):
        return "layout: not aligned"
    for a, b in combinations(spans, 2):
        share = a[1] != "activation" or a[4] & b[4]
        if a[:2] == b[:2] and share and a[2] < b[3] and b[2] < a[3]:
            return "layout: overlap"
    return None


def step(t: dict[str, list[Row]], program: int) -> str | None:
    """What is wrong within one step of a program."""
    streams = members(t, program)
    inside = [i for stream in streams for i in stream]
    edges = graph(t, program)
    if isinstance(edges, str):
        return edges
    before = closure(edges)
    if before is None:
        return "cycle"
    commits = [i for i in inside if t["instructions"][i]["kind"] == fmt.COMMIT_KIND]
    if len(commits) != 1:
        return "sink: not one"
    if any(i not in before[commits[0]] for i in inside if i != commits[0]):
        return "sink: not after everything"
    return races(t, touched(t, [(i, i) for i in inside]), before) or weights(t, program, inside)


def graph(t: dict[str, list[Row]], program: int) -> Edges | str:
    """For each instruction those that come right before it; or what is wrong with a threshold."""
    streams = members(t, program)
    makers: dict[int, list[int]] = defaultdict(list)
    for i in (i for stream in streams for i in stream):
        for n in part(t, i, "notifies", "notify"):
            makers[n["event"]].append(i)
            if t["events"][n["event"]]["program"] != program:
                return "event of another program"
    edges: Edges = {}
    for stream in streams:
        for k, i in enumerate(stream):
            edges[i] = {stream[k - 1]} if k else set()
            for w in part(t, i, "waits", "wait"):
                event = t["events"][w["event"]]
                if not w["count"] == event["wait_count"] == len(makers[w["event"]]) or not w["count"]:
                    return f"threshold of {i}"
                edges[i] |= set(makers[w["event"]])
    return edges


def closure(edges: Edges) -> dict[Any, set[Any]] | None:
    """For each node all that come before it; None where there is a cycle."""
    before: dict[Any, set[Any]] = {}
    waiting = {node: len(near) for node, near in edges.items()}
    after = defaultdict(list)
    for node, near in edges.items():
        for n in near:
            after[n].append(node)
    ready = [node for node, n in waiting.items() if n == 0]
    while ready:
        node = ready.pop()
        before[node] = set(edges[node]).union(*(before[n] for n in edges[node]))
        for n in after[node]:
            waiting[n] -= 1
            if waiting[n] == 0:
                ready.append(n)
    return before if len(before) == len(edges) else None


def touched(t: dict[str, list[Row]], nodes: list[tuple[Any, int]]) -> Touched:
    """What the nodes' instructions touch, by buffer."""
    out: Touched = defaultdict(list)
    for node, i in nodes:
        for r in part(t, i, "regions", "region"):
            bits = elements(r, t["buffers"][r["buffer"]]["cols"])
            out[r["buffer"]].append((node, r["mode"] == fmt.WRITE, bits))
    return out


def races(t: dict[str, list[Row]], accesses: Touched, before: dict[Any, set[Any]]) -> str | None:
    """Conflicts that nothing orders, and reads of scratch memory that no task has written before."""
    for buffer, found in accesses.items():
        for (a, writes, bits), (b, also, others) in combinations(found, 2):
            if a != b and (writes or also) and bits & others and a not in before[b] and b not in before[a]:
                return f"race of {a} and {b} in buffer {buffer}"
        if fmt.ARENAS[t["buffers"][buffer]["arena"]] != "activation":
            continue
        for a, writes, bits in found:
            if not writes:
                for b, also, others in found:
                    if also and b in before[a]:
                        bits &= ~others
                if bits:
                    return f"unwritten: {a} reads what was never written in buffer {buffer}"
    return None


def steps(t: dict[str, list[Row]]) -> str | None:
    """What is wrong between two steps; buffers that share memory count as one."""
    for p in programs(t):
        for q in programs(t):
            first, second = graph(t, p), graph(t, q)
            assert not isinstance(first, str)
            assert not isinstance(second, str)
            sink = next(i for i in first if t["instructions"][i]["kind"] == fmt.COMMIT_KIND)
            edges: Edges = {(0, i): {(0, n) for n in near} for i, near in first.items()}
            edges |= {(1, i): {(1, n) for n in near} | {(0, sink)} for i, near in second.items()}
            before = closure(edges)
            assert before is not None
            found = touched(t, [(node, node[1]) for node in edges])
            places: dict[tuple[Any, ...], list[tuple[Any, bool]]] = defaultdict(list)
            for buffer, accesses in found.items():
                b = t["buffers"][buffer]
                size = fmt.DTYPE_BYTES[fmt.DTYPES[b["dtype"]]]
                for node, writes, bits in accesses:
                    for k in (k for k in range(bits.bit_length()) if bits >> k & 1):
                        for byte in range(b["offset"] + k * size, b["offset"] + (k + 1) * size, 2):
                            places[b["device"], b["arena"], byte].append((node, writes))
            for where, users in places.items():
                for (a, writes), (b, also) in combinations(users, 2):
                    if a != b and (writes or also) and a not in before[b] and b not in before[a]:
                        return f"race of {a} and {b} at {where}"
    return None


def weights(t: dict[str, list[Row]], program: int, inside: list[int]) -> str | None:
    """Runs that aren't where their tiles are, and rows of a tensor that are not read once."""
    device = {i: s["device"] for s in t["streams"] for i in range(s["begin"], s["end"])}
    rows: dict[int, Counter[tuple[int, ...]]] = defaultdict(Counter)
    slots = 0
    for i in inside:
        for run in part(t, i, "tape", "tape"):
            tile = t["tiles"][run["tile"]]
            stride = tile["bytes"] if tile["gathered"] else 0
            if (run["offset"], run["bytes"], run["stride"]) != (tile["offset"], tile["bytes"], stride):
                return f"tape of {i}: not its tile"
            if (run["slot"] >= 0) != bool(tile["gathered"]) or device[i] != tile["device"]:
                return f"tape of {i}: not its tile"
            slots = max(slots, run["slot"] + 1)
            matrices = [run["slot"]] if tile["gathered"] else range(tile["begin"], tile["end"])
            for tensor in (x for x in (tile["tensor"], tile["second"]) if x != fmt.NONE):
                rows[tensor].update(
                    (bool(tile["gathered"]), m, r, tile["col_begin"] + c)
                    for m in matrices
                    for r in range(tile["row_begin"], tile["row_end"])
                    for c in range(tile["cols"])
                )
    if set(rows) != {k for k, w in enumerate(t["weights"]) if w["programs"] >> program & 1}:
        return f"weights: not those of program {program}"
    for tensor, count in rows.items():
        w = t["weights"][tensor]
        (gathered,) = {g for g, _, _, _ in count}
        first = range(slots if gathered else w["matrices"])
        wanted = {(gathered, *e) for e in product(first, range(w["rows"]), range(w["cols"]))}
        if set(count) != wanted or set(count.values()) != {1}:
            return f"weights: tensor {tensor} of program {program}"
    return None
