"""The figures of a bench run, as a JSON object and as tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from tilecompile.cost.traffic import stated_reads
from tilecompile.measure.bench.requests_report import peers_prefill, requests_tables
from tilecompile.measure.bench.rounds import ENGINE, Round, Steps, best_kernel, steady
from tilecompile.measure.roof import ReadKernel, Roof
from tilecompile.runtime.cuda.backend import CudaBackend
from tilecompile.runtime.engine import Engine
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.machine import cpu_name, usable_cores
from tilecompile.show.units import size


def figures(
    engine: Engine,
    rounds: Sequence[Round],
    steps: Steps,
    roof: Roof,
    tried: dict[ReadKernel, float],
) -> dict[str, Any]:
    """The figures of the rounds. Times in ms, bandwidths in 10⁹ bytes a second.

    Figures are medians over the rounds that are kept. `roof_fraction` is too: of each round's own fraction, which is
    `bytes_per_step` over its `ms_per_step` over its `read_bandwidth_gbs`, since the machine's bandwidth may change from
    round to round. So is the `ratio` of a variant: its time over the engine's.
    """
    kept = steady(list(rounds))
    best = best_kernel(kept)
    ms, bandwidths = [r.ms[ENGINE] for r in kept], [r.bandwidth(best) for r in kept]
    step_bytes = stated_reads(engine.manifest).mean(steps.contexts)
    fractions = [step_bytes / 1e6 / m / b for m, b in zip(ms, bandwidths, strict=True)]
    return {
        "ms_per_step": median(ms),
        "spread": spread(ms),
        "tokens_per_second": 1e3 / median(ms),
        "bytes_per_step": step_bytes,
        "read_bandwidth_gbs": median(bandwidths),
        "read_bandwidth_spread": spread(bandwidths),
        "read_kernel": best.name,
        "roof_fraction": median(fractions),
        "roof_fraction_spread": spread(fractions),
        "contexts": [steps.contexts.start, steps.contexts.stop - 1],
        "steps_per_round": len(steps.contexts) * steps.requests,
        "rounds": [
            {"ms_per_step": m, "read_bandwidth_gbs": b, "roof_fraction": f}
            for m, b, f in zip(ms, bandwidths, fractions, strict=True)
        ],
        "rounds_left_out": len(rounds) - len(kept),
        "working_set_bytes": roof.size,
        "read_kernels": [{"name": kernel.name, "gbs": gbs} for kernel, gbs in tried.items()],
        "ablation": [_variant(name, kept) for name in kept[0].ms if name != ENGINE],
    }


def _variant(name: str, rounds: Sequence[Round]) -> dict[str, Any]:
    ms, ratios = [r.ms[name] for r in rounds], [r.ms[name] / r.ms[ENGINE] for r in rounds]
    return {"name": name, "ms_per_step": median(ms), "spread": spread(ms), "ratio": median(ratios)}


def spread(values: list[float]) -> dict[str, float]:
    """Least, quartiles and greatest of some values."""
    lower, _, upper = quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    return {"min": min(values), "lower_quartile": lower, "upper_quartile": upper, "max": max(values)}


def gpu_names(engine: Engine) -> list[str]:
    """The GPUs that a loaded engine runs on."""
    return [gpu.name for gpu in engine.backend.node.gpus] if isinstance(engine.backend, CudaBackend) else []


def machine(manifest: Manifest) -> dict[str, Any]:
    """The machine that the engine ran on, and the instruction set that it used."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    isa = manifest.data["target"]["isa"]
    return {"cpu": cpu_name(), "cores": usable_cores(), "isa": isa, "memory_bytes": memory}


def resident_bytes() -> int | None:
    """Memory that this process has in use, or None where the system doesn't report it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def memory(manifest: Manifest, before: int | None, after: int | None) -> dict[str, Any]:
    """Bytes that the engine takes: weights and arenas, and the process's resident memory before and after loading."""
    arenas = {key: sum(arena[key] for arena in manifest.arenas) for key in ("cache", "activation", "io")}
    return {
        "resident_bytes": after,
        "resident_growth_bytes": None if before is None or after is None else after - before,
        "weights_bytes": sum(int(pool["bytes"]) for pool in manifest.pools),
        **{f"{key}_bytes": count for key, count in arenas.items()},
    }


def print_report(found: dict[str, Any]) -> None:
    """The figures as tables on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    about = Table(title=Text(found["engine"]), show_header=False, title_justify="left")
    for name, value in _about(found):
        about.add_row(Text(name), Text(value))
    console.print(about)
    table = Table("", "median", "quartiles", "range")
    for name, key, spread_key, form in (
        ("ms a step", "ms_per_step", "spread", ".4g"),
        ("read bandwidth, GB/s", "read_bandwidth_gbs", "read_bandwidth_spread", ".4g"),
        ("roof fraction", "roof_fraction", "roof_fraction_spread", ".3f"),
    ):
        s = {k: f"{v:{form}}" for k, v in found[spread_key].items()}
        quartiles, ends = f"{s['lower_quartile']} to {s['upper_quartile']}", f"{s['min']} to {s['max']}"
        table.add_row(Text(name), f"{found[key]:{form}}", quartiles, ends)
    console.print(table)
    for table in requests_tables(found):
        console.print(table)
    if found["ablation"]:
        table = Table("the engine with", "ms a step", "× the engine")
        for v in found["ablation"]:
            table.add_row(Text(v["name"]), f"{v['ms_per_step']:.4g}", f"{v['ratio']:.3f}")
        console.print(table)
    if found["peers"]:
        table = Table("peer", "ms a step", "× the engine", "settings")
        for peer in found["peers"]:
            error = peer.get("error")
            cells = ("", "") if error else (f"{peer['ms_per_step']:.4g}", f"{peer['ratio']:.1f}")
            table.add_row(Text(peer["name"]), *cells, Text(error or _words(peer.get("settings"))))
        console.print(table)
    for table in peers_prefill(found["peers"]):
        console.print(table)


def _about(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What was measured where, in words."""
    host, held = found["machine"], found["memory"]
    cores = f"{host['cores']} core{'s' * (host['cores'] > 1)}"
    gpus = "".join(f"{name}, " for name in host["gpus"])
    growth = held["resident_growth_bytes"]
    resident = "" if growth is None else f"; {size(growth)} more resident after loading"
    first, last = found["contexts"]
    rounds = f"{len(found['rounds'])} of {found['steps_per_round']} steps, {found['rounds_left_out']} left out"
    threads = f", {found['threads']} threads" if found["threads"] else ""
    roof = ("roof", f"{found['read_bandwidth_gbs']:.4g} GB/s: {found['read_kernel']}")
    if found["read_kernels"]:
        tried = f"best of {len(found['read_kernels'])} on {size(found['working_set_bytes'])}"
        roof = ("read kernel", f"{tried}: {found['read_kernel']}")
    return [
        ("model", f"{found['model']}, weights {found['weights']}, cache {found['cache']}"),
        (
            "machine",
            f"{gpus}{host['cpu']}, {cores}, {host['isa']}, memory {size(host['memory_bytes'])}",
        ),
        ("memory", f"weights {size(held['weights_bytes'])}, cache {size(held['cache_bytes'])}{resident}"),
        ("context", f"{found['context']} positions: steps at {first} to {last}{threads}"),
        ("rounds", rounds),
        ("tokens", f"{found['tokens_per_second']:.4g} a second"),
        ("read a step", size(found["bytes_per_step"])),
        roof,
    ]


def _words(settings: Any) -> str:
    if isinstance(settings, dict):
        return ", ".join(f"{key} {value}" for key, value in settings.items())
    return str(settings) if settings else ""
