"""A check of traces against the documented Trace Event Format, and against what makes a timeline."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest

NS = 1e-3
"""A nanosecond in a trace's microseconds."""

FIELDS: dict[str, tuple[set[str], set[str]]] = {
    "X": {"name", "cat", "pid", "tid", "ts", "dur", "args"},
    "s": {"name", "cat", "id", "pid", "tid", "ts"},
    "f": {"name", "cat", "id", "pid", "tid", "ts", "bp"},
    "C": {"name", "pid", "ts", "args"},
    "M": {"name", "pid", "args"},
}
"""Fields of each phase in the Trace Event Format; a thread's metadata has its tid too."""
METADATA = {"process_name": "name", "process_sort_index": "sort_index"} | {
    "thread_name": "name",
    "thread_sort_index": "sort_index",
}


def check_format(text: str) -> dict[str, Any]:
    """Parses a trace back and checks all that the format asks for."""
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert set(found) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert found["displayTimeUnit"] in ("ms", "ns")
    named: dict[str, set[Any]] = defaultdict(set)
    for e in found["traceEvents"]:
        ids = {"tid"} if e["ph"] == "M" and e["name"].startswith("thread") else set()
        assert set(e) == FIELDS[e["ph"]] | {"ph"} | ids, f"fields of {e}"
        assert all(type(e[key]) is int for key in ("pid", "tid", "id") if key in e)
        assert all(isinstance(e[key], float) and e[key] >= 0 for key in ("ts", "dur") if key in e), e
        if e["ph"] == "M":
            where = (e["pid"], e.get("tid"))
            assert where not in named[e["name"]]
            named[e["name"]].add(where)
            assert set(e["args"]) == {METADATA[e["name"]]}
        if e["ph"] == "C":
            assert all(isinstance(value, float) and value >= 0 for value in e["args"].values())
        if e["ph"] == "f":
            assert e["bp"] == "e"
    events = found["traceEvents"]
    assert {(e["pid"], None) for e in events} == named["process_name"] == named["process_sort_index"], "names"
    tracks = {(e["pid"], e["tid"]) for e in events if "tid" in e}
    assert tracks == named["thread_name"] == named["thread_sort_index"], "names"
    check_slices(events)
    check_flows(events)
    return dict(found)


def slices(events: list[dict[str, Any]], *categories: str) -> list[dict[str, Any]]:
    return [e for e in events if e["ph"] == "X" and e["cat"] in categories]


def check_slices(events: list[dict[str, Any]]) -> None:
    """Slices of a track don't overlap."""
    tracks = defaultdict(list)
    for e in slices(events, "work", "wait", "path"):
        tracks[e["pid"], e["tid"]].append(e)
    for found in tracks.values():
        found.sort(key=lambda e: (e["ts"], e["ts"] + e["dur"]))
        for a, b in pairwise(found):
            assert a["ts"] + a["dur"] <= b["ts"] + NS / 2, f"{a} and {b} overlap"


def check_flows(events: list[dict[str, Any]]) -> None:
    """Each flow begins once and ends once, later, and at both of its ends there is a slice of work."""
    ends: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = {"s": {}, "f": {}}
    work = defaultdict(list)
    for e in slices(events, "work"):
        work[e["pid"], e["tid"]].append((e["ts"] - NS / 2, e["ts"] + e["dur"] + NS / 2))
    for e in events:
        if e["ph"] in ends:
            key = (e["cat"], e["name"], e["id"])
            assert key not in ends[e["ph"]], f"{key} is there twice"
            ends[e["ph"]][key] = e
            assert any(begin <= e["ts"] <= end for begin, end in work[e["pid"], e["tid"]]), e
    assert set(ends["s"]) == set(ends["f"]), "a flow with one end"
    assert all(e["ts"] <= ends["f"][key]["ts"] for key, e in ends["s"].items())
