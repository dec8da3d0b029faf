"""The tables of an engine's page: placement, bytes and memory by device, times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tilecompile.inspection.picture import COLOURS, short
from tilecompile.inspection.structure import Operator, Structure
from tilecompile.inspection.times import Times
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.names import PUSH, SUM, ranges
from tilecompile.show.html import text
from tilecompile.show.units import size

PARTS = ("attention", "indexer", "MLP and experts", "lm_head", "the rest")
"""Parts of the model that the weights of a step belong to."""

ARENAS = ("weights", "cache", "activation", "io")


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """A table whose first `left` columns are aligned left; cells that begin with < are markup already."""
    head = "".join(f"<th>{text(cell)}</th>" for cell in heads)
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    kind = f' class="left{left}"' if left > 1 else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


class Markup(str):
    """Text that is markup."""


def _cell(value: object) -> str:
    return value if isinstance(value, Markup) else text(value)


def swatch(colour: int) -> Markup:
    """A square in the colour of a group of devices."""
    return Markup(f'<i class="swatch c{min(colour, COLOURS - 1)}"></i>')


def placement(
    found: Structure, splits: Mapping[str, dict[str, Any]], shown: int, colours: Mapping[tuple[int, ...], int]
) -> str:
    """A table for each kind of layer, and one for what is outside the layers; that of the shown layer is open."""
    parts = []
    kinds: dict[object, list[int]] = {}
    layers = found.layers()
    for number, members in layers.items():
        rows = [_row(found.operators[i], splits, colours) for i in members]
        kinds.setdefault(tuple(map(tuple, rows)), []).append(number)
    for numbers in kinds.values():
        title = f"{'Layer' if len(numbers) == 1 else 'Layers'} {ranges(numbers)}"
        operators = [found.operators[i] for i in layers[numbers[0]]]
        parts.append(_details(title, operators, splits, colours, shown in numbers))
    outside = [o for o in found.operators if o.layer is None]
    parts.append(_details("Outside the layers", outside, splits, colours, False))
    return "".join(parts)


def _details(
    title: str,
    operators: Sequence[Operator],
    splits: Mapping[str, dict[str, Any]],
    colours: Mapping[tuple[int, ...], int],
    is_open: bool,
) -> str:
    heads = ("operator", "op", "devices", "divided by", "sum", "tasks a device", "bytes a device", "bytes")
    rows = [_row(o, splits, colours) for o in operators]
    summary = f"<summary>{text(title)} <span>{len(rows)} operators</span></summary>"
    return f"<details{' open' if is_open else ''}>{summary}{table(heads, rows, 5)}</details>"


def _row(
    operator: Operator, splits: Mapping[str, dict[str, Any]], colours: Mapping[tuple[int, ...], int]
) -> list[object]:
    split = splits.get(operator.name)
    sums = splits.get(operator.origin) if operator.role == SUM else None
    moved = operator.pushed_bytes if operator.role == PUSH else operator.weight_bytes
    total = sum(moved.values())
    return [
        short(operator.local),
        operator.op,
        Markup(f"{swatch(colours[operator.devices])}{text(ranges(list(operator.devices)))}"),
        _divided(split, sums, operator),
        split["reduction"] or "" if split else "",
        _span(operator.tasks.values(), str),
        _span(moved.values(), size) if total else "",
        size(total) if total else "",
    ]


def _divided(split: Mapping[str, Any] | None, sums: Mapping[str, Any] | None, operator: Operator) -> str:
    """How an operator is divided, with the sizes of its shards."""
    if operator.role == PUSH:
        return "exchange"
    if split is None and sums is None:
        return ""
    parts = sums["adds"] if sums else split["parts"] if split else []
    axis = "columns of the sum" if sums else split["axis"] if split else None
    if axis is None:
        return "whole"
    if split and split["block"]:
        heads = f", then heads: {_span([end - begin for _, begin, end in split['adds']], str)}" if split["adds"] else ""
        return f"{axis}: blocks of {split['block']}{heads}"
    return f"{axis}: {_span([end - begin for _, begin, end in parts], str)}"


def _span(values: Iterable[int], shown: Any) -> str:
    """The smallest and the largest value."""
    known = sorted(values)
    low, high = shown(known[0]), shown(known[-1])
    return str(low) if low == high else f"{low}–{high}"


def part_of(operator: Operator) -> str:
    """Which of PARTS the weights of an operator belong to."""
    name = operator.name
    if ".indexer." in name:
        return "indexer"
    if ".self_attn." in name:
        return "attention"
    if ".mlp." in name:
        return "MLP and experts"
    return "lm_head" if name.split(".")[-1] in ("lm_head", "draft_head") else "the rest"


def weights_by_device(found: Structure, devices: int) -> list[dict[str, int]]:
    """Bytes of weights that each device streams in a step, by PARTS."""
    sums = [dict.fromkeys(PARTS, 0) for _ in range(devices)]
    for operator in found.operators:
        for device, count in operator.weight_bytes.items():
            sums[device][part_of(operator)] += count
    return sums


def stacked(
    rows: Sequence[Mapping[str, int]], names: Sequence[str], what: str, more: tuple[str, Sequence[int]] | None = None
) -> str:
    """Bars by device, cut in the parts of `names`, with a legend and a table of the figures and of `more`."""
    used = [name for name in names if any(row[name] for row in rows)]
    totals = [sum(row.values()) for row in rows]
    full = max([1, *totals])
    bars = []
    for device, (row, total) in enumerate(zip(rows, totals, strict=True)):
        cuts = "".join(
            f'<i class="p{names.index(n)}" style="width:{100 * row[n] / full:.4f}%" '
            f'title="{text(n)}: {size(row[n])}"></i>'
            for n in used
            if row[n]
        )
        spoken = ", ".join(f"{n} {size(row[n])}" for n in used)
        bars.append(
            f'<div class="row"><span>device {device}</span><div class="bar" role="img" aria-label="{text(spoken)}">'
            f"{cuts}</div><b>{size(total)}</b></div>"
        )
    legend = "".join(f'<li><i class="p{names.index(n)}"></i>{text(n)}</li>' for n in used)
    cells = [
        [f"device {d}", *(size(row[n]) if row[n] else "–" for n in used), size(t)]
        for d, (row, t) in enumerate(zip(rows, totals, strict=True))
    ]
    if len(rows) > 1:
        sums = {n: sum(row[n] for row in rows) for n in used}
        cells.append(["all", *(size(sums[n]) for n in used), size(sum(totals))])
    if more is not None:
        counts = [*more[1], *([sum(more[1])] if len(rows) > 1 else [])]
        cells = [[*row, size(count)] for row, count in zip(cells, counts, strict=True)]
    return (
        f'<ul class="legend">{legend}</ul><figure>{"".join(bars)}<figcaption>{text(what)}</figcaption></figure>'
        f"{table(['', *used, 'sum', *([more[0]] if more else [])], cells)}"
    )


def memory_by_device(manifest: Manifest) -> list[dict[str, int]]:
    """Bytes of each device's pool and arenas."""
    return [
        {"weights": int(pool["bytes"]), **{key: int(arena[key]) for key in ARENAS[1:]}}
        for pool, arena in zip(manifest.pools, manifest.arenas, strict=True)
    ]


def times(found: Sequence[Times]) -> str:
    """The summaries side by side."""
    heads = ["", *(t.source for t in found)]
    rows: list[list[object]] = [
        ["a step", *(f"{t.step_ms:.3g} ms" for t in found)],
        ["context", *(t.context for t in found)],
        ["threads", *(t.threads for t in found)],
        ["fraction of the roof", *("–" if t.roof is None else f"{t.roof:.0%}" for t in found)],
        ["tasks on the critical path", *(t.path_tasks for t in found)],
        ["machine", *(t.machine for t in found)],
        ["file", *(t.file for t in found)],
    ]
    parts = [table(heads, rows)]
    shares = list(dict.fromkeys(name for t in found for name in t.shares))
    parts.append("<h3>Share of the workers' time</h3>")
    parts.append(table(heads, [[n, *(_percent(t.shares.get(n)) for t in found)] for n in shares]))
    ops = sorted({op for t in found for op in t.path_ms}, key=lambda op: -max(t.path_ms.get(op, 0) for t in found))
    parts.append("<h3>Work on the critical path, by op</h3>")
    parts.append(table(heads, [[op, *(_ms(t.path_ms.get(op), t.step_ms) for t in found)] for op in ops]))
    return "".join(parts)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _ms(ms: float | None, step: float) -> Markup:
    if ms is None:
        return Markup("–")
    width = 100 * min(ms / step, 1)
    return Markup(f'<span class="cellbar" style="--share:{width:.2f}%">{ms:.3g} ms</span>')
