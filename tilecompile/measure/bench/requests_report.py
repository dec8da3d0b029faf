"""What bench measured of whole requests, prompts and speculation, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def requests_tables(found: dict[str, Any]) -> Iterator[Table]:
    """The tables of `prefill` and `speculation`, where they were measured."""
    if found["prefill"]:
        yield _prefill(found["prefill"])
    for case in found["speculation"]["cases"] if found["speculation"] else []:
        yield _case(case, found["speculation"])


def _prefill(prefill: dict[str, Any]) -> Table:
    from rich.table import Table

    title = f"prompts, {prefill['chunk']} tokens a step: {prefill['tokens_per_second']:.4g} tokens/s, "
    title += f"{prefill['times_decode']:.2f} × decode"
    table = Table("prompt", "first token, ms", "range", "tokens/s", title=title, title_justify="left")
    for one in prefill["first_token"]:
        ends = f"{one['spread']['min']:.4g} to {one['spread']['max']:.4g}"
        rate = 1e3 * one["prompt_tokens"] / one["ms"]
        table.add_row(str(one["prompt_tokens"]), f"{one['ms']:.4g}", ends, f"{rate:.4g}")
    return table


def _case(case: dict[str, Any], speculation: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    what = f"of {case['text']}" if case["text"] else f"accepted at {case['acceptance']:g}"
    title = f"drafts {what}: best {case['best']}; {speculation['rounds']} rounds, {speculation['tokens']} tokens"
    table = Table(
        "drafts", "ms a token", "tokens/s", "× none", "accepted length", "accepted by depth", title=Text(title)
    )
    for row in case["depths"]:
        table.add_row(
            *(str(row["drafts"]), f"{row['ms_per_token']:.4g}", f"{row['tokens_per_second']:.4g}"),
            *(f"{row['times_none']:.3f}", f"{row['accepted_length']:.3g}" if row["accepted"] else ""),
            ", ".join(f"{rate:.2f}" for rate in row["accepted"]),
        )
    return table


def peers_prefill(peers: Sequence[dict[str, Any]]) -> Iterator[Table]:
    """The prompts that peers have read, beside the engine's, if any has."""
    from rich.table import Table
    from rich.text import Text

    rows = [(peer["name"], entry) for peer in peers for entry in peer.get("prefill", [])]
    if not rows:
        return
    table = Table("prompts of", "dtype", "tokens", "ms", "× the engine", "settings")
    for name, entry in rows:
        settings = ", ".join(f"{key} {value}" for key, value in entry["settings"].items() if key != "dtype")
        times = (f"{entry['ms']:.4g}", f"{entry['ratio']:.2f}")
        table.add_row(Text(name), entry["dtype"], str(entry["prompt_tokens"]), *times, Text(settings))
    yield table
