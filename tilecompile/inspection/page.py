"""The page of an engine: its structure, placement, bytes and memory by device, and times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilecompile.engine.placement_json import read_placement, read_table
from tilecompile.inspection.picture import COLOURS, picture, short
from tilecompile.inspection.sections import (
    ARENAS,
    PARTS,
    memory_by_device,
    placement,
    stacked,
    swatch,
    table,
    times,
    weights_by_device,
)
from tilecompile.inspection.structure import Structure, structure
from tilecompile.inspection.times import Times
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.folder.tables import load_tables
from tilecompile.runtime.names import ranges
from tilecompile.runtime.progress import Progress, silent
from tilecompile.show.html import document, text
from tilecompile.show.units import size

LIGHT = ("#2f6f9f", "#2c8573", "#b8691b", "#8d3f88", "#6b6f1d", "#6b7682")
DARK = ("#6fa5d4", "#4cbca6", "#e39b52", "#c883c3", "#b5ba55", "#9aa5b1")

STYLE = f"""
:root {{ {" ".join(f"--c{i}: {c};" for i, c in enumerate(LIGHT))} }}
@media (prefers-color-scheme: dark) {{ :root {{ {" ".join(f"--c{i}: {c};" for i, c in enumerate(DARK))} }} }}
{" ".join(f".swatch.c{i}, .p{i} {{ background: var(--c{i}); }}" for i in range(COLOURS))}
{" ".join(f".dag .c{i} .stripe {{ fill: var(--c{i}); }}" for i in range(COLOURS))}
h3 {{ font-size: 1rem; margin: 1.4rem 0 .2rem; }}
.dag {{ display: block; margin: 0 auto; width: 100%; min-width: 900px; height: auto; font-size: 12px; }}
.dag text {{ fill: var(--ink); }} .dag .path, .dag .fig {{ fill: var(--dim); font-size: 10px; }}
.dag .leaf {{ font-weight: 600; font-size: 13px; }} .dag .num {{ fill: var(--ink); }}
.dag .box rect {{ fill: var(--track); stroke: var(--line); }}
.dag .push rect {{ fill: var(--paper); stroke: var(--line); stroke-dasharray: 4 3; }}
.dag .outside rect {{ fill: none; stroke: var(--line); }} .dag .outside text {{ fill: var(--dim); font-size: 10.5px; }}
.dag .line path {{ fill: none; stroke: var(--dim); stroke-width: 1.1; opacity: .75; }}
.dag .far path {{ stroke: var(--ink); stroke-width: 2.2; opacity: 1; }}
.dag .own path {{ stroke-dasharray: 2 3; }}
.dag .line text {{ font-size: 10.5px; fill: var(--dim); stroke: var(--paper); stroke-width: 3; paint-order: stroke;
  font-variant-numeric: tabular-nums; }}
.dag .line:hover path {{ stroke: var(--ink); stroke-width: 2.5; opacity: 1; }}
.dag marker path {{ fill: var(--dim); }}
.swatch {{ display: inline-block; width: .7em; height: .7em; margin-right: .45em; border-radius: 2px; }}
.left5 :is(th, td):nth-child(-n+5), .left2 :is(th, td):nth-child(-n+2) {{ text-align: left; }}
details {{ border-top: 1px solid var(--line); padding: .5rem 0; }} summary {{ cursor: pointer; font-weight: 600; }}
summary span {{ font-weight: normal; color: var(--dim); font-size: .9rem; margin-left: .5rem; }}
details .scroll {{ margin-top: .4rem; }}
.row {{ display: grid; grid-template-columns: 5rem 1fr 5rem; gap: .2rem .8rem; align-items: center; font-size: .9rem;
  font-variant-numeric: tabular-nums; }}
.row + .row {{ margin-top: .25rem; }} .row b {{ font-weight: 600; text-align: right; }}
figcaption {{ margin-top: .4rem; }} figure + .scroll {{ margin-top: .8rem; }}
.bar i + i {{ border-left: 1px solid var(--paper); }}
.cellbar {{ display: inline-block; min-width: 7rem; padding: 0 .3rem;
  background: linear-gradient(to left, var(--track) var(--share), transparent var(--share)); border-radius: 2px; }}
"""


def page(
    manifest: Manifest,
    program: str,
    layer: int | None,
    found_times: Sequence[Times],
    command: str,
    progress: Progress = silent,
) -> str:
    """The page of an engine, of one of its programs, with the events of one layer.

    EngineError for an engine without a part that it needs, InputError for a layer that isn't there.
    """
    data = manifest.data
    about = manifest.program(program)
    splits, read = read_placement(manifest, program), read_table(manifest, program)
    tables = load_tables(manifest)
    number = next(i for i, p in enumerate(data["programs"]) if p["name"] == program)
    found = structure(manifest, tables, number)
    shown = found.layer(layer)
    progress("draw", 0, 1)
    colours: dict[tuple[int, ...], int] = {}
    for i in found.layers()[shown]:
        colours.setdefault(found.operators[i].devices, len(colours))
    for operator in found.operators:
        colours.setdefault(operator.devices, len(colours))
    streamed = weights_by_device(found, manifest.devices)
    totals = [sum(row.values()) for row in streamed]
    mean = sum(totals) / len(totals)
    title = f"{data['model']['name']}, {data['placement']} on {_count(manifest.devices, 'device')}"
    uneven = (
        f" The most loaded device reads {max(totals) / mean - 1:.1%} more than the mean." if len(totals) > 1 else ""
    )
    parts = [
        f"<h1>{text(title)}</h1>",
        f'<p class="dim">{_about(manifest)}</p>',
        _headline(manifest, about, max(totals), found_times),
        "<h2>Programs</h2>",
        table(
            ("program", "tasks", "events", "waits", "bytes a step"),
            [[p["name"], p["tasks"], p["events"], p["edges"], size(p["bytes_per_step"])] for p in data["programs"]],
        ),
        f"<h2>Events of layer {shown}, program {text(program)}</h2>",
        _key(found, shown, colours),
        f'<figure><div class="scroll">{picture(found, shown, colours)}</div>',
        f"<figcaption>{CAPTION}</figcaption></figure>",
        _events(found, shown),
        "<h2>Placement</h2>",
        '<p class="dim">Bytes are weights that a step streams, of experts those of its slots; of pushes, what they '
        "carry.</p>",
        placement(found, splits, shown, colours),
        "<h2>Weights read in a step, by device</h2>",
        stacked(
            streamed,
            PARTS,
            f"Weights as they are stored in the pools. A full bar is {size(max(totals))}.{uneven}{_exchanges(read)}",
            (f"distinct bytes, with caches of {read['context']} positions", read["read"]),
        ),
        "<h2>Memory, by device</h2>",
        stacked(
            memory_by_device(manifest),
            ARENAS,
            "The pool of weights, and the arenas for caches (all positions), activations and the controller's words.",
        ),
        *(["<h2>Where the time of a step goes</h2>", times(found_times)] if found_times else []),
        f"<footer><p>Made with <code>{text(command)}</code>, tilecompile {text(data['tilecompile'])}; format "
        f"{data['format']}.</p></footer>",
    ]
    return document(title, STYLE, parts)


CAPTION = (
    "A box is an operator on all its devices: devices × tasks on each of them, and the bytes of weights that they "
    "stream or push. A line is the events that one operator notifies and another waits for; the number at its end is "
    "their wait count, "
    "the tasks that notify an event. Thick lines go from device to device. A dotted line is a result that is read "
    "without an event: the order of a worker's tasks and other waits imply that it is there. Point at a box or a line "
    "for more."
)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _exchanges(read: dict[str, Any]) -> str:
    """The price of the placement, in a sentence."""
    if not read["exchanges"]:
        return ""
    return (
        f" A step has {read['exchanges']} exchanges, {read['chain']} of them one after the other, which push "
        f"{size(read['pushed'])}."
    )


def _about(manifest: Manifest) -> str:
    data = manifest.data
    parts = [
        f"machine {data['machine']}",
        f"{_count(manifest.workers, 'worker')}",
        f"{data['target']['name']}, {data['target']['isa']}",
        f"{data['weights']['dtype']} weights",
        f"{data['cache']} cache",
        f"{manifest.max_seq_len} positions",
    ]
    return " · ".join(f'<span class="part">{text(part)}</span>' for part in parts)


def _headline(manifest: Manifest, about: dict[str, object], most: int, found: Sequence[Times]) -> str:
    memory = max(sum(row.values()) for row in memory_by_device(manifest))
    items = [f"<li><b>{t.step_ms:.3g} ms</b> a step, {text(t.source)}</li>" for t in found]
    items += [
        f"<li><b>{about['tasks']:,}</b> tasks</li>",
        f"<li><b>{about['edges']:,}</b> waits</li>",
        f"<li><b>{size(most)}</b> weights a step{', busiest device' if manifest.devices > 1 else ''}</li>",
        f"<li><b>{size(memory)}</b> memory{', fullest device' if manifest.devices > 1 else ''}</li>",
    ]
    return f'<ul class="headline">{"".join(items)}</ul>'


def _key(found: Structure, layer: int, colours: dict[tuple[int, ...], int]) -> str:
    """The devices that the colours stand for, of those that are in the layer."""
    there = {found.operators[i].devices for i in found.layers()[layer]}
    items = [
        f"<li>{swatch(colour)}{'device' if len(devices) == 1 else 'devices'} {ranges(list(devices))}</li>"
        for devices, colour in colours.items()
        if devices in there
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _events(found: Structure, layer: int) -> str:
    """The lines of the picture as a table."""
    members = set(found.layers()[layer])
    edges = [e for e in found.edges if e.consumer in members or e.producer in members]
    rows = []
    for e in sorted(edges, key=lambda e: (e.consumer, e.producer)):
        a, b = found.operators[e.producer], found.operators[e.consumer]
        counts = str(e.least) if e.least == e.most else f"{e.least}–{e.most}"
        names = [short(o.local) if o.layer == layer else short(o.name) for o in (a, b)]
        rows.append([*names, e.tensors, e.elements, counts, e.waits, e.remote or ""])
    heads = ("notified by", "awaited by", "event tensors", "elements", "wait count", "waits", "from other devices")
    return f"<details><summary>Events <span>{len(rows)} lines</span></summary>{table(heads, rows, 2)}</details>"
