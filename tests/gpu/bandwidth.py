"""Part `bandwidth`: how fast plain kernels and the weight ring read memory, and how fast events are seen."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from gpu.folder import Folder
from gpu.records import FILL_LAUNCH, PING_LAUNCH, READ_LAUNCH, STREAM_LAUNCH, record

Json = dict[str, Any]

BYTES = 4 << 30
"""Memory that is read: far more than a second-level cache."""
RUN_BYTES = 192 << 10
"""Bytes of a weight run, about what a task of GLM-5 streams."""
GRIDS = (1, 2, 4, 8)
"""Blocks an SM of the kernel with plain loads."""
PINGS = 20000


def fill(card: Any, kernel: Any, address: int, size: int, seed: int = 1) -> None:
    """Fills memory with random numbers."""
    grid = 8 * card.sms
    card.launch(kernel, grid, record(FILL_LAUNCH, memory=address, words=size // 4, seed=seed, grid=grid))
    card.wait()


def plain(card: Any, kernel: Any, address: int, size: int) -> Json:
    """Bytes a second of plain loads, for several grids."""
    total = card.put(np.zeros(4, np.uint32))
    found = {}
    for each in GRIDS:
        grid = each * card.sms
        launch = record(READ_LAUNCH, memory=address, words=size // 16, sum=total, grid=grid)
        step = grid * 288 * 8  # words that a round of all threads reads; what is left over isn't read
        read = size // 16 // step * step * 16
        found[f"{each} blocks an SM"] = read / card.seconds(lambda: card.launch(kernel, grid, launch))  # noqa: B023
    return found


def rings(card: Any, folder: Folder, address: int, size: int, end: float) -> tuple[list[Json], int]:
    """Bytes a second of the ring in each shape, and how many shapes there was no time for."""
    failed = card.put(np.zeros(4, np.uint32))
    found: list[Json] = []
    shapes = folder.index["streams"]["rings"]
    for shape in shapes:
        if time.monotonic() > end:
            break
        kernel = card.kernel(folder.bytes(shape["cubin"]), "stream", shape["shared"])
        runs = size // RUN_BYTES // card.sms * card.sms  # the same for each block
        launch = record(
            STREAM_LAUNCH,
            memory=address,
            bytes=runs * RUN_BYTES,
            run_bytes=RUN_BYTES,
            failed=failed,
            times=1,
            blocks=card.sms,
        )
        seconds = card.seconds(lambda: card.launch(kernel, card.sms, launch), repeats=5)  # noqa: B023
        rate = runs * RUN_BYTES / seconds
        found.append({"slot": shape["slot"], "stages": shape["stages"], "bytes_a_second": rate})
    if card.read(failed, np.zeros(1, np.uint32))[0]:
        raise RuntimeError("a block waited for its weights for too long")
    return found, len(shapes) - len(found)


def latency(card: Any, kernel: Any, sys: int) -> float:
    """Nanoseconds from the barrier before an event's release until the other block has loaded what it announces."""
    counters, data = card.put(np.zeros(64, np.uint32)), card.put(np.zeros(64, np.uint32))
    ns, failed = card.put(np.zeros(2, np.uint64)), card.put(np.zeros(4, np.uint32))
    found = []
    for _ in range(5):
        card.zero(counters, 256)
        card.zero(data, 256)
        launch = record(PING_LAUNCH, counters=counters, data=data, ns=ns, failed=failed, times=PINGS, sys=sys)
        card.launch(kernel, 2, launch)
        card.wait()
        if wrong := card.read(failed, np.zeros(1, np.uint32))[0]:
            raise RuntimeError("a block saw an event without its data" if wrong == 2 else "a block saw no event")
        found.append(float(card.read(ns, np.zeros(1, np.uint64))[0]) / (2 * PINGS - 1))
    return float(np.median(found))


def by_torch(size: int) -> Json:
    """Bytes a second that torch moves: a copy, read and written bytes together, and a sum, which only reads."""
    import torch

    if not torch.cuda.is_available():
        return {}
    a = torch.randn(size // 4, device="cuda")
    b = torch.empty_like(a)

    def seconds(work: Any) -> float:
        for _ in range(3):
            work()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        times = []
        for _ in range(7):
            begin.record()
            work()
            end.record()
            end.synchronize()
            times.append(1e-3 * begin.elapsed_time(end))
        return float(np.median(times))

    return {"torch copy": 2 * size / seconds(lambda: b.copy_(a)), "torch sum": size / seconds(lambda: a.sum())}


def give_back() -> None:
    """Frees the memory of the GPU that torch caches."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run(folder: Folder, seconds: float, earlier: Json) -> Json:
    """All of it; `read_bandwidth` is the best of the kernels that read, in bytes a second."""
    from gpu.card import Card

    end = time.monotonic() + seconds
    torch_rates = by_torch(BYTES)
    give_back()
    with Card() as card:
        about = folder.index["streams"]
        cubin = folder.bytes(about["cubin"])
        address = card.allocate(BYTES)
        fill(card, card.kernel(cubin, "fill"), address, BYTES)
        ping = card.kernel(cubin, "ping")
        waits = {"gpu": latency(card, ping, 0), "sys": latency(card, ping, 1)}
        reads = plain(card, card.kernel(cubin, "plain_read"), address, BYTES)
        found, left = rings(card, folder, address, BYTES, end)
    ring = max(found, key=lambda one: float(one["bytes_a_second"]))
    best = max([*reads.values(), torch_rates.get("torch sum", 0.0), ring["bytes_a_second"]])
    share = ring["bytes_a_second"] / best
    return {
        "passed": share >= 0.9 and not left,
        "gpu": card.name,
        "read_bandwidth": best,
        "ring": ring,
        "ring_share": share,
        "event_latency_ns": waits["gpu"],
        "event_latency_sys_ns": waits["sys"],
        "plain": reads,
        "torch": torch_rates,
        "rings": found,
        "rings_left_out": left,
        "summary": [
            *((name, "", f"{rate / 1e9:,.0f} GB/s") for name, rate in (*torch_rates.items(), *reads.items())),
            (
                "ring",
                f"{ring['stages']} slots of {ring['slot']} bytes",
                f"{ring['bytes_a_second'] / 1e9:,.0f} GB/s, {share:.0%}",
            ),
            ("event", "gpu scope, sys scope", f"{waits['gpu']:.0f} ns, {waits['sys']:.0f} ns"),
        ],
    }
