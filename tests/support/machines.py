"""Machines with assumed costs, as files: virtual devices of a CPU, and the costs of their links."""

from __future__ import annotations

from pathlib import Path


def write_machine(
    path: Path, devices: int, remote_event_ns: float = 200, link_gbs: float = 20, gbs: float = 40, target: str = "cpu"
) -> Path:
    """A machine file; `gbs` is the bandwidth of all workers of a device together, of one alone half of it."""
    path.write_text(
        f"""name = "assumed"
target = "{target}"
devices = {devices}
link_gbs = {link_gbs}
link_latency_ns = 100
weight_types = ["f32", "bf16"]

[simulator]
read = [[1000, {gbs / 2}, {gbs}]]
task_ns = 20
event_ns = 100
remote_event_ns = {remote_event_ns}
"""
    )
    return path
