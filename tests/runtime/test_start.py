"""What a start costs: memory, the time from `load` to the first token, and nothing while the engine is idle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.paths import ROOT
from tilecompile.compile import compile_model
from tilecompile.options import CompileOptions

CHILD = """
import json, sys, time, tilecompile

def rss():
    with open("/proc/self/smaps_rollup") as file:
        return 1024 * int(file.read().split("Rss:")[1].split()[0])

before, begin = rss(), time.perf_counter()
engine = tilecompile.load(sys.argv[1])
loaded = rss()
engine.generate([1, 2, 3], 1)
first = time.perf_counter() - begin
manifest = engine.manifest
weights = sum(pool["bytes"] for pool in manifest.pools)
cache = sum(int(arena["cache"]) for arena in manifest.arenas)
idle = 0.0
if len(sys.argv) > 2:
    time.sleep(1)
    cpu = time.process_time()
    time.sleep(float(sys.argv[2]))
    idle = (time.process_time() - cpu) / float(sys.argv[2])
print(json.dumps({"growth": loaded - before, "first": first, "weights": weights, "cache": cache, "idle": idle}))
"""


def start(engine: Path, *idle_seconds: str) -> dict[str, Any]:
    """Figures of a fresh process: bytes, seconds, cores in use while idle."""
    command = [sys.executable, "-c", CHILD, str(engine), *idle_seconds]
    result: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return result


def memory_fits(figures: dict[str, Any]) -> bool:
    """Whether loading takes little more than the weights and caches themselves."""
    return bool(figures["growth"] <= 1.15 * (figures["weights"] + figures["cache"]) + 16e6)


def test_a_loaded_engine_takes_little_memory_and_is_idle(tiny: Path) -> None:
    figures = start(tiny, "2")
    assert memory_fits(figures), figures
    assert figures["idle"] <= 0.01, figures


def test_the_first_token_comes_within_300_ms(tiny: Path) -> None:
    # The best of some starts: other work on the machine is not the engine's.
    assert min(start(tiny)["first"] for _ in range(3)) <= 0.3


@pytest.mark.slow
@pytest.mark.parametrize("model", ["examples/tiny-glm5", "glm5-mini"])
def test_a_start_is_quick_and_small_for_larger_models(model: str, tmp_path: Path) -> None:
    source = ROOT / model
    compile_model(CompileOptions(str(source) if source.exists() else model, tmp_path / "engine"))
    runs = [start(tmp_path / "engine", "3") for _ in range(3)]
    assert all(memory_fits(figures) for figures in runs), runs
    assert min(figures["idle"] for figures in runs) <= 0.01, runs
    first = min(figures["first"] for figures in runs)
    assert first <= max(0.3, runs[0]["weights"] / 1e9), runs
