"""The recordings of a calibration, as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilecompile.measure.calibrate.calibrate import Check


def print_checks(checks: Sequence[Check]) -> None:
    """Prints the recordings that a calibration was made from as a table on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("engine", "context", "threads", "measured ms", "simulated ms", "difference", "memory")
    for c in checks:
        figures = (
            f"{c.measured_ms:.4g}",
            f"{c.simulated_ms:.4g}",
            f"{100 * (c.simulated_ms / c.measured_ms - 1):+.1f} %",
            f"{c.pace:.2f}",
        )
        table.add_row(Text(c.engine), str(c.context), str(c.threads), *figures)
    Console().print(table)
