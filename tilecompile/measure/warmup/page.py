"""The page: one HTML file that needs nothing else, with bars by phase for every system, warm and cold."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tilecompile.measure.warmup.measure import PHASES
from tilecompile.show.html import document, embedded, text
from tilecompile.show.units import size

TITLES = {"import": "import", "load": "load", "compile": "compile or capture", "first_step": "first step"}
STATES = {"warm": "warm file cache", "cold": "cold file cache"}

STYLE = """
:root { --import: #5b8db8; --load: #3aa08c; --compile: #d98a3d; --first_step: #a0489b; --offline: #9aa5b1; }
@media (prefers-color-scheme: dark) { :root { --import: #6fa5d4; --load: #4cbca6; --compile: #e39b52;
  --first_step: #c06fbb; --offline: #6b7682; } }
.system { padding: .7rem 0; border-top: 1px solid var(--line); }
.system h3 { font-size: 1rem; margin: 0 0 .3rem; }
.system h3 span { font-weight: normal; color: var(--dim); font-size: .9rem; margin-left: .5rem; }
.row { display: grid; grid-template-columns: 8.5rem 1fr 4.5rem; gap: .2rem .8rem; align-items: center;
  font-size: .9rem; font-variant-numeric: tabular-nums; }
.row + .row { margin-top: .25rem; }
.row b { font-weight: 600; text-align: right; }
.import { background: var(--import); } .load { background: var(--load); } .compile { background: var(--compile); }
.first_step { background: var(--first_step); }
.offline { background: repeating-linear-gradient(45deg, var(--offline) 0 4px, transparent 4px 8px); }
th:nth-child(2), td:nth-child(2) { text-align: left; }
@media (max-width: 640px) { .row { grid-template-columns: 1fr auto; } .row .bar { grid-column: 1 / 3; grid-row: 2; }
  .row + .row { margin-top: .6rem; } }
"""


def seconds(value: float | None) -> str:
    """A time for people, with three digits that count."""
    if value is None:
        return "–"
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f} s"


def page(report: dict[str, Any]) -> str:
    """The page of a report (what `warmup --json` prints)."""
    systems = report["systems"]
    engine = systems[0]
    longest = max([report["compile_seconds"], *_totals(systems)])
    title = f"{report['model']}: process start to first token"
    parts = [
        f"<h1>{text(title)}</h1>",
        f'<p class="dim">{_machine(report)}</p>',
        _headline(report),
        "<h2>All on one scale</h2>",
        _legend(),
        f"<figure>{''.join(_system(s, longest, report) for s in systems)}",
        f"<figcaption>A full bar is {seconds(longest)}.</figcaption></figure>",
        "<h2>The engine alone, enlarged</h2>",
        f"<figure>{_system(engine, max(_totals([engine])), None)}",
        f"<figcaption>A full bar is {seconds(max(_totals([engine])))}; the offline compilation is left out."
        "</figcaption></figure>",
        "<h2>Figures</h2>",
        f'<div class="scroll">{_table(systems)}</div>',
        _footer(report),
        f'<script type="application/json" id="report">{embedded(report)}</script>',
    ]
    return document(title, STYLE, parts)


def _states(system: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The states of a system that were measured."""
    return [(name, system[name]) for name in STATES if name in system and "seconds" in system[name]]


def _totals(systems: list[dict[str, Any]]) -> list[float]:
    return [state["seconds"] for system in systems for _, state in _states(system)]


def _machine(report: dict[str, Any]) -> str:
    threads = "1 thread" if report["threads"] == 1 else f"{report['threads']} threads"
    parts = [report["machine"], f"{report['cores']} cores", threads, f"{report['weights']} weights", _date(report)]
    return " · ".join(f'<span class="part">{text(part)}</span>' for part in parts)


def _date(report: dict[str, Any]) -> str:
    return datetime.fromisoformat(report["date"]).strftime("%Y-%m-%d %H:%M %Z")


def _headline(report: dict[str, Any]) -> str:
    items = []
    for system in report["systems"]:
        if "warm" in system:
            ratio = system["warm"]["ratio"]
            longer = "" if system is report["systems"][0] else f" <span>{ratio:.3g}× as long</span>"
            items.append(f"<li><b>{seconds(system['warm']['seconds'])}</b> {text(system['name'])}{longer}</li>")
    return f'<ul class="headline">{"".join(items)}</ul><p class="dim">First token, from a warm file cache.</p>'


def _legend() -> str:
    items = [f'<li><i class="{phase}"></i>{TITLES[phase]}</li>' for phase in PHASES]
    items.append('<li><i class="offline"></i>compiled offline, once</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def _system(system: dict[str, Any], longest: float, report: dict[str, Any] | None) -> str:
    """The bars of a system; with a report the engine gets a bar for its offline compilation too."""
    rows = [f"<h3>{text(system['name'])} <span>{text(system['about'])}</span></h3>"]
    if "unavailable" in system:
        rows.append(f'<p class="dim">{text(system["unavailable"])}</p>')
    for name, label in STATES.items():
        state = system.get(name)
        if state is None:
            continue
        if "unavailable" in state:
            rows.append(f'<p class="dim">{label}: {text(state["unavailable"])}</p>')
            continue
        parts = [(phase, state["phases"][phase]) for phase in PHASES if state["phases"][phase] is not None]
        rows.append(_row(label, parts, longest, state["seconds"], f'data-system="{text(system["name"])}-{name}"'))
    if report is not None and system is report["systems"][0]:
        offline = report["compile_seconds"]
        rows.append(_row("offline compile", [("offline", offline)], longest, offline, 'data-system="offline"'))
    return f'<div class="system">{"".join(rows)}</div>'


def _row(label: str, parts: list[tuple[str, float]], longest: float, total: float, data: str) -> str:
    segments = "".join(
        f'<i class="{phase}" style="width:{100 * value / longest:.4f}%" '
        f'title="{TITLES.get(phase, phase)}: {seconds(value)}"></i>'
        for phase, value in parts
    )
    spoken = ", ".join(f"{TITLES.get(phase, phase)} {seconds(value)}" for phase, value in parts)
    bar = f'<div class="bar" role="img" aria-label="{spoken}">{segments}</div>'
    return f'<div class="row" {data}><span>{label}</span>{bar}<b>{seconds(total)}</b></div>'


def _table(systems: list[dict[str, Any]]) -> str:
    heads = ["system", "file cache", *(TITLES[phase] for phase in PHASES), "first token", "×", "spread", "runs"]
    rows = []
    for system in systems:
        for name, state in _states(system):
            spread = " to ".join(map(seconds, state["spread"])) if state["runs"] > 1 else "–"
            cells = [system["name"], name, *(seconds(state["phases"][phase]) for phase in PHASES)]
            ratio = f"{state['ratio']:.1f}" if "ratio" in state else "–"
            cells += [seconds(state["seconds"]), ratio, spread, state["runs"]]
            rows.append("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{text(cell)}</th>" for cell in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _footer(report: dict[str, Any]) -> str:
    evicted = [
        f"{text(s['name'])} {s['cold']['evicted']:.0%} of {size(s['cold']['bytes'])}"
        for s in report["systems"]
        if "evicted" in s.get("cold", {})
    ]
    gone = f" Out of the file cache before each cold start: {', '.join(evicted)}." if evicted else ""
    ids = ", ".join(map(str, report["prompt_ids"]))
    return (
        f"<footer><p>Measured {text(_date(report))} with <code>{text(report['command'])}</code>, "
        f"tilecompile {text(report['tilecompile'])}.</p>"
        f"<p>Each bar is the median of fresh processes, from their start to the first token after the ids {ids}. "
        "× is that time over the engine's, from the same file cache. A cold start is one from a file cache that the "
        "system's files were evicted from; names of files, what other processes have mapped, and the caches of a disk "
        f"below stay warm.{gone}</p></footer>"
    )
