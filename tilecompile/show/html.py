"""What the pages that commands write have in common: one file that needs nothing else, light and dark, any width."""

from __future__ import annotations

import html
import json
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --dim: #5d6876; --paper: #ffffff; --line: #d5dbe2; --track: #f1f4f7; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf1; --dim: #9daab8; --paper: #14181e; --line: #333c47;
  --track: #1d232b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 3rem; max-width: 1120px; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem; }
p { margin: .4rem 0; }
.dim, figcaption, footer { color: var(--dim); font-size: .9rem; }
.headline { display: flex; flex-wrap: wrap; gap: .4rem 2.2rem; margin: 1.2rem 0 0; padding: 0; list-style: none; }
.headline b { display: block; font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.headline span { color: var(--dim); margin-left: .3rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .6rem 0; padding: 0; list-style: none;
  font-size: .9rem; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px; }
figure { margin: 0; }
.bar { display: flex; height: 1.15rem; background: var(--track); border-radius: 3px; overflow: hidden; }
.bar i { display: block; height: 100%; }
.part { white-space: nowrap; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .3rem .7rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; }
footer { margin-top: 2.2rem; border-top: 1px solid var(--line); padding-top: .8rem; }
code { font-size: .95em; overflow-wrap: anywhere; }
@media (max-width: 640px) { body { padding: 1.2rem 1rem 2rem; } .headline { flex-direction: column; }
  .headline b { font-size: 1.5rem; } }
"""


def text(value: object) -> str:
    """A value as text of a page."""
    return html.escape(str(value))


def embedded(report: dict[str, Any]) -> str:
    """JSON that can stand in a script element."""
    return json.dumps(report).replace("<", "\\u003c")


def document(title: str, style: str, parts: list[str]) -> str:
    """The page: its title, what it has of style beyond the common one, and its body."""
    head = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{text(title)}</title><style>{STYLE}{style}</style></head><body>",
    ]
    return "\n".join([*head, *parts, "</body></html>"]) + "\n"
