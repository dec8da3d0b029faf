"""Where the boxes and lines of a layered graph go: rows by depth, few crossings, short lines.

After Sugiyama, Tagawa and Toda, Methods for visual understanding of hierarchical system structures (1981): edges over
several rows are broken at each row, rows are sorted by the means of their neighbours' places, and then boxes move as
close to their neighbours as their widths allow.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

Pair = tuple[int, int]
SWEEPS = 24
GAP = 12.0
BEND = 10.0
"""Width of a place where an edge crosses a row."""
PULL = (1.0, 2.0, 8.0)
"""Weights that pull an edge upright: between two boxes, a box and a bend, two bends (after Gansner et al. 1993)."""


@dataclass(frozen=True)
class Layout:
    """Centres of the nodes (x, row), the width of all, the rows, and the places by which each edge goes."""

    x: dict[int, float]
    row: dict[int, int]
    width: float
    rows: int
    paths: dict[Pair, list[tuple[float, int]]]


def layout(widths: Mapping[int, float], edges: Sequence[Pair], late: Sequence[int] = ()) -> Layout:
    """Lays out an acyclic graph. `widths` has its nodes; those in `late` stand right above what they lead to.

    Nodes that nothing else is known of keep their order.
    """
    row = _rows(list(widths), edges, set(late))
    count = max(row.values(), default=0) + 1
    size, chains = dict(widths), {}
    for edge in edges:
        a, b = edge
        bends = range(len(size), len(size) + row[b] - row[a] - 1)
        for step, bend in enumerate(bends):
            size[bend], row[bend] = BEND, row[a] + 1 + step
        chains[edge] = [a, *bends, b]
    above: dict[int, list[int]] = {n: [] for n in size}
    below: dict[int, list[int]] = {n: [] for n in size}
    for chain in chains.values():
        for a, b in itertools.pairwise(chain):
            below[a].append(b)
            above[b].append(a)
    order = [[n for n in size if row[n] == r] for r in range(count)]
    order = _sorted(order, above, below)
    x = _placed(order, size, above, below)
    for chain in sorted(chains.values(), key=len, reverse=True):
        _straighten(chain[1:-1], [[n for n in order[row[bend]] if n != bend] for bend in chain[1:-1]], x, size)
    left = min((x[n] - size[n] / 2 for n in widths), default=0.0)
    left = min([left, *(x[n] for n in size)])
    x = {n: value - left for n, value in x.items()}
    right = max((x[n] + size[n] / 2 for n in size), default=0.0)
    paths = {edge: [(x[n], row[n]) for n in chain] for edge, chain in chains.items()}
    return Layout({n: x[n] for n in widths}, {n: row[n] for n in widths}, right, count, paths)


def _rows(nodes: list[int], edges: Sequence[Pair], late: set[int]) -> dict[int, int]:
    """The longest way to each node; graphlib's CycleError, a ValueError that names one, for a cycle.

    networkx is what the compiler has for this, but a page is made where only the base dependencies are installed.
    """
    before: dict[int, list[int]] = {n: [] for n in nodes}
    after: dict[int, list[int]] = {n: [] for n in nodes}
    for a, b in edges:
        before[b].append(a)
        after[a].append(b)
    row: dict[int, int] = {}
    for node in TopologicalSorter(before).static_order():
        row[node] = max((row[a] + 1 for a in before[node]), default=0)
    for node in late:
        row[node] = min((row[b] for b in after[node]), default=1) - 1
    return row


def _sorted(order: list[list[int]], above: dict[int, list[int]], below: dict[int, list[int]]) -> list[list[int]]:
    """The rows in the order with the fewest crossings that sweeps up and down come by."""
    best, fewest = order, _crossings(order, below)
    for sweep in range(SWEEPS):
        order = [list(r) for r in order]
        down = sweep % 2 == 0
        near = above if down else below
        for r in range(1, len(order)) if down else range(len(order) - 2, -1, -1):
            place = {n: i for i, n in enumerate(order[r - 1 if down else r + 1])}
            own = {n: i for i, n in enumerate(order[r])}
            scale = max(len(place), 1) / max(len(own), 1)

            def mean(n: int, place: dict[int, int] = place, own: dict[int, int] = own, scale: float = scale) -> float:
                found = [place[m] for m in near[n]]  # noqa: B023  (used within the sweep)
                return sum(found) / len(found) if found else own[n] * scale

            order[r].sort(key=mean)
        crossings = _crossings(order, below)
        if crossings < fewest:
            best, fewest = order, crossings
    return best


def _crossings(order: list[list[int]], below: dict[int, list[int]]) -> int:
    """How often edges cross between neighbouring rows."""
    total = 0
    for upper, lower in itertools.pairwise(order):
        place = {n: i for i, n in enumerate(lower)}
        ends = [place[m] for n in upper for m in sorted(below[n], key=place.__getitem__)]
        total += sum(a > b for i, b in enumerate(ends) for a in ends[:i])
    return total


def _placed(
    order: list[list[int]], size: Mapping[int, float], above: dict[int, list[int]], below: dict[int, list[int]]
) -> dict[int, float]:
    """Centres of the nodes: one row after the other moves as near to its neighbours as widths and order allow."""
    x: dict[int, float] = {}
    for nodes in order:
        at = -sum(size[n] + GAP for n in nodes) / 2
        for n in nodes:
            x[n] = at + size[n] / 2
            at += size[n] + GAP
    for sweep in range(4 * SWEEPS):
        for nodes in order if sweep % 2 == 0 else order[::-1]:
            ideal, weight = [], []
            for n in nodes:
                pulls = [(PULL[(size[n] == BEND) + (size[m] == BEND)], x[m]) for m in above[n] + below[n]]
                weight.append(sum(pull for pull, _ in pulls) or PULL[0])
                ideal.append(sum(pull * at for pull, at in pulls) / weight[-1] if pulls else x[n])
            for n, value in zip(nodes, _apart(ideal, weight, [size[n] for n in nodes]), strict=True):
                x[n] = value
    return x


def _straighten(bends: list[int], others: list[list[int]], x: dict[int, float], size: Mapping[int, float]) -> None:
    """Puts the bends of an edge below each other, where a column is free in all their rows."""

    def free(at: float) -> bool:
        return all(abs(x[n] - at) >= (size[n] + BEND) / 2 for row in others for n in row)

    columns = sorted({x[b] for b in bends}, key=lambda at: sum(abs(x[b] - at) for b in bends))
    column = next(filter(free, columns), None)
    if column is not None:
        x.update(dict.fromkeys(bends, column))


def _apart(ideal: list[float], weight: list[float], size: list[float]) -> list[float]:
    """The centres nearest to the ideal ones (least squares) at which boxes in this order don't overlap."""
    offset, at = [], 0.0
    for i in range(len(size)):
        at += (size[i - 1] + size[i]) / 2 + GAP if i else 0.0
        offset.append(at)
    blocks: list[list[float]] = []  # sum of weights, mean, members: neighbours that would overlap move as one
    for i in range(len(size)):
        blocks.append([weight[i], ideal[i] - offset[i], 1])
        while len(blocks) > 1 and blocks[-2][1] > blocks[-1][1]:
            w, mean, members = blocks.pop()
            first = blocks[-1]
            first[1] = (first[0] * first[1] + w * mean) / (first[0] + w)
            first[0] += w
            first[2] += members
    means = [mean for _, mean, members in blocks for _ in range(int(members))]
    return [mean + off for mean, off in zip(means, offset, strict=True)]
