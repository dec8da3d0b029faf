"""The event-tensor graph of a layer as inline SVG: a box for each operator, a line for the events between two."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise

from tilecompile.inspection.layout import Layout, Pair, layout
from tilecompile.inspection.structure import Edge, Operator, Structure
from tilecompile.runtime.names import PUSH, ranges
from tilecompile.show.html import text
from tilecompile.show.units import size

BOX, HEIGHT, PILL, LOW, SPACE, MARGIN = 164.0, 58.0, 136.0, 24.0, 42.0, 8.0
"""Pixels: width and height of a box, of what is outside the layer, height between rows, room around all."""

COLOURS = 6
"""Groups of devices with a colour of their own; the rest share the last."""


def picture(found: Structure, layer: int, colours: Mapping[tuple[int, ...], int]) -> str:
    """The SVG of a layer; `colours` numbers the sets of devices."""
    members = found.layers()[layer]
    inside = set(members)
    edges = [e for e in found.edges if e.consumer in inside]
    ordered = {(a, b) for a, b in found.read_from(members) if a != found.sink}  # the sink is of the step before
    sources = sorted(({e.producer for e in edges} | {writer for writer, _ in ordered}) - inside)
    leaving = [e for e in found.edges if e.producer in inside and e.consumer not in inside]
    after = len(found.operators)
    nodes = [*sources, *members] + [after] * bool(leaving)
    number = {node: i for i, node in enumerate(nodes)}
    widths = {i: BOX if node in inside else PILL for i, node in enumerate(nodes)}
    pairs: dict[Pair, list[Edge]] = {(number[a], number[b]): [] for a, b in sorted(ordered)}
    for edge in edges:
        pairs[number[edge.producer], number[edge.consumer]] = [edge]
    for edge in leaving:
        pairs.setdefault((number[edge.producer], number[after]), []).append(edge)
    placed = layout(widths, list(pairs), [number[s] for s in sources])
    boxes = []
    for node in members:
        boxes.append(_box(found.operators[node], *_corner(placed, number[node], BOX), colours))
    for node in sources:
        operator = found.operators[node]
        label = operator.local if operator.layer is None else f"layer {operator.layer}: {operator.local}"
        boxes.append(_outside(label, f"before: {operator.name}", *_corner(placed, number[node], PILL)))
    if leaving:
        later = sorted({found.operators[e.consumer].name for e in leaving})
        boxes.append(_outside("after the layer", "read by: " + ", ".join(later), *_corner(placed, number[after], PILL)))
    outside = {number[node] for node in nodes if node not in inside}
    lines = _lines(placed, pairs, found.operators, nodes, outside)
    width, height = placed.width + 2 * MARGIN, placed.rows * (HEIGHT + SPACE) - SPACE + 2 * MARGIN
    return (
        f'<svg class="dag" viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px" role="img" '
        f'aria-label="Operators of layer {layer} and the events between them">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto" '
        'markerUnits="userSpaceOnUse"><path d="M0 0 8 4 0 8z"/></marker></defs>'
        f"{''.join(lines)}{''.join(boxes)}</svg>"
    )


def _corner(placed: Layout, node: int, width: float) -> tuple[float, float]:
    return placed.x[node] - width / 2 + MARGIN, _top(placed.row[node])


def _box(operator: Operator, x: float, y: float, colours: Mapping[tuple[int, ...], int]) -> str:
    """An operator: its name within the layer on two lines, its op, devices, tasks and bytes."""
    path, leaf = _named(short(operator.local))
    devices, tasks = operator.devices, operator.tasks
    counts = sorted(set(tasks.values()))
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    moved = sum(operator.weight_bytes.values()) + sum(operator.pushed_bytes.values())
    figures = [f"{len(devices)}×{many}" if len(devices) > 1 else many, *([size(moved)] if moved else [])]
    details = [
        f"{operator.name} ({operator.op})",
        f"devices {ranges(list(devices))}; tasks {_by_device(tasks)}",
        *([f"weights {size(sum(operator.weight_bytes.values()))}"] if any(operator.weight_bytes.values()) else []),
        *([f"pushes {size(sum(operator.pushed_bytes.values()))}"] if any(operator.pushed_bytes.values()) else []),
    ]
    colour = min(colours[devices], COLOURS - 1)
    kind = "push" if operator.role == PUSH else "box"
    return (
        f'<g class="{kind} c{colour}" data-operator="{text(operator.name)}">'
        f"<title>{text(chr(10).join(details))}</title>"
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{BOX}" height="{HEIGHT}" rx="5"/>'
        f'<path class="stripe" d="M{x + 5:.1f} {y:.1f}h3v{HEIGHT}h-3a5 5 0 0 1-5-5V{y + 5:.1f}a5 5 0 0 1 5-5z"/>'
        f'<text x="{x + 15:.1f}" y="{y + 16:.1f}" class="path">{text(_cut(path, 25) or "·")}</text>'
        f'<text x="{x + 15:.1f}" y="{y + 32:.1f}" class="leaf">{text(_cut(leaf, 21))}</text>'
        f'<text x="{x + 15:.1f}" y="{y + 49:.1f}" class="fig">{text(_cut(operator.op, 12))} '
        f'<tspan class="num">{text(" · ".join(figures))}</tspan></text></g>'
    )


def _outside(label: str, title: str, x: float, y: float) -> str:
    """What is before or after the layer."""
    y += (HEIGHT - LOW) / 2
    return (
        f'<g class="outside"><title>{text(title)}</title>'
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{PILL}" height="{LOW}" rx="{LOW / 2}"/>'
        f'<text x="{x + PILL / 2:.1f}" y="{y + 16:.1f}" text-anchor="middle">{text(_cut(label, 23))}</text></g>'
    )


def _lines(
    placed: Layout, pairs: Mapping[Pair, list[Edge]], operators: list[Operator], nodes: list[int], outside: set[int]
) -> list[str]:
    """The lines, each with the wait count at its end; where several meet a box they keep apart."""
    starts, ends = _ports(placed, pairs, 0), _ports(placed, pairs, 1)
    lines = []
    for pair, edges in pairs.items():
        path = placed.paths[pair]
        low = [(HEIGHT - LOW) / 2 if node in outside else 0.0 for node in pair]
        points = [(starts[pair], _top(path[0][1]) + HEIGHT - low[0])]
        for x, row in path[1:-1]:
            points += [(x + MARGIN, _top(row)), (x + MARGIN, _top(row) + HEIGHT)]
        points.append((ends[pair], _top(path[-1][1]) + low[1] - 1))
        d = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
        for i, ((xa, ya), (xb, yb)) in enumerate(pairwise(points)):
            middle = (ya + yb) / 2
            d += f"V{yb:.1f}" if i % 2 else f"C{xa:.1f} {middle:.1f} {xb:.1f} {middle:.1f} {xb:.1f} {yb:.1f}"
        kind = "far line" if any(e.remote for e in edges) else "line" if edges else "own line"
        names = [operators[nodes[node]].name for node in pair if nodes[node] < len(operators)]
        words = [in_words(e, operators) for e in edges] or [
            f"{' → '.join(names)}: no event, other waits imply the order"
        ]
        count = _span([n for e in edges for n in (e.least, e.most)])
        lines.append(
            f'<g class="{kind}"><title>{text(chr(10).join(words))}</title><path d="{d}" marker-end="url(#tip)"/>'
            f'<text x="{points[-1][0] + 4:.1f}" y="{points[-1][1] - 9:.1f}">{count}</text></g>'
        )
    return lines


def in_words(edge: Edge, operators: list[Operator]) -> str:
    """An edge in words."""
    count = f"{edge.least}" if edge.least == edge.most else f"{edge.least} to {edge.most}"
    far = f", {edge.remote} of them from another device" if edge.remote else ""
    return (
        f"{operators[edge.producer].name} → {operators[edge.consumer].name}: {edge.tensors} event tensors with "
        f"{edge.elements} elements{far}; wait count {count}; {edge.waits} waits"
    )


def _span(counts: list[int]) -> str:
    """The smallest and the largest number."""
    low, high = min(counts, default=0), max(counts, default=0)
    return "" if not counts else f"{low}" if low == high else f"{low}–{high}"


def _ports(placed: Layout, pairs: Mapping[Pair, list[Edge]], side: int) -> dict[Pair, float]:
    """Where each line leaves (0) or meets (1) its box, from left to right as it comes."""
    of_node: dict[int, list[Pair]] = defaultdict(list)
    for pair in pairs:
        of_node[pair[side]].append(pair)
    found = {}
    for node, mine in of_node.items():
        next_to = 1 if side == 0 else -2
        mine.sort(key=lambda pair: placed.paths[pair][next_to])
        step = min(30.0, (PILL - 24) / len(mine))
        for i, pair in enumerate(mine):
            found[pair] = placed.x[node] + MARGIN + (i - (len(mine) - 1) / 2) * step
    return found


def _top(row: int) -> float:
    return row * (HEIGHT + SPACE) + MARGIN


def _by_device(tasks: Mapping[int, int]) -> str:
    """Tasks of each device, in words."""
    counts = sorted(set(tasks.values()))
    return f"{counts[0]} on each" if len(counts) == 1 else ", ".join(f"{n} on {d}" for d, n in sorted(tasks.items()))


def _named(name: str) -> tuple[str, str]:
    """Module path and last name; a number belongs to the name before it."""
    path, _, leaf = name.rpartition(".")
    if leaf.isdigit():
        path, _, before = path.rpartition(".")
        leaf = f"{before}.{leaf}"
    return path, leaf


def short(name: str) -> str:
    """The name of operators that were fused, without what they have in common: a.gate+a.up is a.gate+up."""
    first, *rest = name.split("+")
    return "+".join([first, *(other.rpartition(".")[2] for other in rest)])


def _cut(label: str, length: int) -> str:
    return label if len(label) <= length else label[: length - 1] + "…"
