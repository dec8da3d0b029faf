"""What the script for a real GPU (tests/gpu) makes of times: bandwidths, latencies, steps as graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu import bandwidth, folder, graphs
from gpu.records import TASK_LAUNCH, record


class Stub:
    """A card that does nothing and takes a millisecond for it, and keeps what it was asked to launch."""

    sms, name = 132, "none"

    def __init__(self) -> None:
        self.launches: list[tuple[int, np.ndarray, bool]] = []

    def __enter__(self) -> Stub:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def put(self, array: np.ndarray) -> int:
        return 4096

    def allocate(self, size: int) -> int:
        return 1 << 30

    def read(self, address: int, like: np.ndarray) -> np.ndarray:
        return np.full_like(like, 40_000_000) if like.dtype == np.uint64 else np.zeros_like(like)

    def zero(self, address: int, size: int) -> None:
        pass

    def wait(self) -> None:
        pass

    def kernel(self, cubin: bytes, name: str, shared: int = 0) -> str:
        return name

    def launch(self, kernel: str, grid: int, record: np.ndarray, programmatic: bool = False) -> None:
        self.launches.append((grid, record.copy(), programmatic))

    def captured(self, work: Any) -> Any:
        return work

    def replay(self, graph: Any) -> None:
        graph()

    def seconds(self, work: Any, repeats: int = 7, warm: int = 2) -> float:
        work()
        return 1e-3


def test_bandwidth_counts_the_bytes_that_were_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """4 GiB in a millisecond, less what doesn't divide evenly; events: half a round."""
    rings = [{"slot": 16384, "stages": 12, "shared": 198656, "cubin": "a"}]
    (tmp_path / "a").write_bytes(b"")
    made = folder.Folder({"streams": {"rings": rings, "cubin": "a"}}, tmp_path)
    monkeypatch.setattr("gpu.card.Card", Stub)
    monkeypatch.setattr(bandwidth, "by_torch", lambda size: {"torch copy": 1e12, "torch sum": 9e12})
    found = bandwidth.run(made, 60, {})
    assert found["read_bandwidth"] == 9e12
    assert all(0.99 < rate / (bandwidth.BYTES / 1e-3) <= 1 for rate in found["plain"].values())
    assert 0.99 < found["ring"]["bytes_a_second"] / (bandwidth.BYTES / 1e-3) <= 1
    assert found["ring_share"] == pytest.approx(bandwidth.BYTES / 1e-3 / 9e12, rel=0.01)
    assert not found["passed"]
    assert found["event_latency_ns"] == pytest.approx(1000, rel=1e-3)


def test_a_graph_launches_every_level() -> None:
    card, launch = Stub(), record(TASK_LAUNCH, rows=7)
    spans = [(0, 5), (5, 200), (205, 1)]
    assert graphs.graph_seconds(card, "run_tasks", launch, spans, True) == 1e-3
    assert [(grid, int(r["first"][0]), late) for grid, r, late in card.launches] == [
        (5, 0, False),
        (200, 5, True),
        (1, 205, True),
    ]
    assert all(int(r["rows"][0]) == 7 for _, r, _ in card.launches)
    earlier = {"share": {"steps": [{"context": 9, "latency_ns": 0, "ms": 2.0}]}}
    assert graphs.resident(earlier, 9, 5.0) == {"over_resident": 2.5}
    assert graphs.resident({}, 9, 5.0) == {}
