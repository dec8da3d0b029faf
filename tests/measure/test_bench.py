"""bench: read kernels that read every byte, variants with the engine's own bits, figures that agree with each other."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilecompile
from support import damage
from support.bench import answer, refused, run, shorten_requests
from support.table_tools import correct, take_apart
from tilecompile.errors import EngineError
from tilecompile.measure import peers, roof
from tilecompile.measure.bench import ablate, report, rounds
from tilecompile.measure.bench.rounds import ENGINE, Round, best_kernel, steady
from tilecompile.measure.roof import KERNELS, ReadKernel, Roof
from tilecompile.measure.steps import another_kernel, fill_caches
from tilecompile.runtime import format as fmt
from tilecompile.runtime.cpu.kernel import Kernel
from tilecompile.runtime.cpu.launch import stalled
from tilecompile.runtime.folder.tables import arena_sizes
from tilecompile.runtime.run import Ask, Run
from tilecompile.verify.proof import Memory, verify

A, B = KERNELS[:2]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short measurements."""
    monkeypatch.setattr(roof, "SECONDS", 5e-4)
    monkeypatch.setattr(rounds, "ROUND_MS", 3.0)
    shorten_requests(monkeypatch)


# The roof.


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_read_kernels_read_every_byte_once(tiny: Path, threads: int) -> None:
    with tilecompile.load(tiny, threads=threads) as engine:
        made = Roof(engine, 300_000)
        assert abs(made.size - 300_000) <= threads * roof.GRAIN
        random = np.random.default_rng(threads)
        for area in made.areas.values():
            area[:] = random.integers(0, 256, area.size, np.uint8)
        for kernel in KERNELS:
            wanted = int(made.areas[kernel.huge_pages].view(np.uint32).sum(dtype=np.uint64))
            for made.passes in (1, 3):
                seconds, total = made.read(kernel)
                assert total == made.passes * wanted % (1 << 32), kernel
                assert 0 < seconds < 1


def test_working_set_is_small_where_memory_is_short(
    engine: tilecompile.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Roof(engine, 1).size == roof.LEAST_BYTES
    monkeypatch.setattr(roof, "free_memory", lambda: 1 << 20)
    assert Roof(engine, 1e12).size == 1 << 18


def test_choose_keeps_the_fastest(engine: tilecompile.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Roof(engine, 1 << 16)
    speed = {kernel: float(i * 7 % len(KERNELS)) for i, kernel in enumerate(KERNELS)}
    monkeypatch.setattr(made, "gbs", speed.__getitem__)
    told: list[tuple[int, int]] = []
    tried = made.choose(lambda done, total: told.append((done, total)))
    assert list(tried.values()) == sorted(speed.values(), reverse=True)
    assert made.measure() == dict(list(tried.items())[: roof.FINALISTS])
    assert set(made.areas) == {kernel.huge_pages for kernel in made.kernels}
    assert told == [(i, roof.SWEEPS * len(KERNELS)) for i in range(roof.SWEEPS * len(KERNELS))]


def test_a_kernel_without_read_kernels_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tilecompile.load(tiny) as engine:
        monkeypatch.setattr(engine.cpu, "library", object())
        with pytest.raises(EngineError, match=r"the kernel has no read kernels; compile the model again"):
            Roof(engine, 1)


# The variants.


def outputs(engine: tilecompile.Engine, kernel: Kernel) -> tuple[list[int], np.ndarray]:
    """Tokens after a prompt that continues random caches, and the logits of the prompt."""
    fill_caches(engine)
    ids = np.array([*([0] * 30), 3, 1, 4, 1, 5], np.int32)
    logits = np.zeros((5, engine.manifest.vocab_size), np.float32)
    with Run(kernel, lambda k: stalled(engine.manifest, engine.tables, k), Ask(ids, 30, 40, logits)) as request:
        request.wait(39)
        return request.tokens(), logits


def test_variants_have_the_engines_bits(tiny: Path) -> None:
    told: list[str] = []
    with tilecompile.load(tiny, threads=4) as engine:
        with another_kernel(engine) as kernel:
            tokens, logits = outputs(engine, kernel)
        assert len(tokens) == 40
        assert logits.any()
        with ablate.variants(engine, lambda stage, *_: told.append(stage)) as variants:
            assert list(variants) == [ablate.BARRIER, ablate.NO_PREFETCH, ablate.NO_TAPES]
            for name, kernel in variants.items():
                found = outputs(engine, kernel)
                assert found[0] == tokens, name
                np.testing.assert_array_equal(found[1], logits, name)
    assert len(told) == 2
    with (
        tilecompile.load(tiny, threads=1) as engine,
        another_kernel(engine, tables=ablate.with_barriers(engine.tables)) as kernel,
    ):
        assert outputs(engine, kernel)[0] == tokens


def test_barriers_are_proved(engine: tilecompile.Engine) -> None:
    tables, data = ablate.with_barriers(engine.tables), engine.manifest.data
    sizes = Memory(arena_sizes(engine.manifest).astype(np.int64))
    names = [b["tensor"] for b in data["buffers"]]
    proof = verify(tables, data["operators"], sizes, names, data["weights"]["tensors"])
    assert proof.instructions == len(engine.tables["instructions"])
    parts = take_apart(tables)
    for program, name in enumerate(p["name"] for p in data["programs"]):
        assert correct(parts, program), name
        streams = parts.of(program)
        operators = {ins.op for s in streams for ins in s.instructions}
        last = max(operators)
        for s in streams:
            for ins in s.instructions:
                events = [parts.events[event] for event, _ in ins.waits]
                assert len(events) == (ins.op != min(operators))
                assert len(ins.notifies) == (ins.op != last)
        # An operator's tasks are done before any of the next begins, which its own edges don't ask for.
        assert len({event for s in streams for ins in s.instructions for event, _ in ins.waits}) == len(operators) - 1


def test_barriers_bring_streams_into_order(engine: tilecompile.Engine) -> None:
    tables = dict(engine.tables)
    mixed = tables["instructions"].copy()
    for stream in tables["streams"]:
        mixed[stream["begin"] : stream["end"]] = mixed[stream["begin"] : stream["end"]][::-1]
    straight, turned = ablate.with_barriers(tables), ablate.with_barriers(tables | {"instructions": mixed})
    for stream in tables["streams"]:
        part = turned["instructions"][stream["begin"] : stream["end"]]
        assert (np.diff(part["op"].astype(np.int64)) >= 0).all()
        same = straight["instructions"][stream["begin"] : stream["end"]]
        np.testing.assert_array_equal(np.sort(part, order=part.dtype.names), np.sort(same, order=same.dtype.names))


def test_checkpoint_order_sorts_tiles_as_the_checkpoint_does(engine: tilecompile.Engine) -> None:
    tables, memory = ablate.checkpoint_order(engine)
    names, tiles = engine.manifest.data["weights"]["tensors"], engine.tables["tiles"]
    assert names.index("model.layers.0.mlp.down_proj.weight") > names.index("model.layers.0.self_attn.q_a_proj.weight")
    places = []
    for old, new in zip(engine.tables["tape"], tables["tape"], strict=True):
        tile = tiles[old["tile"]]
        for expert in range(int(tile["copies"])):
            a, b = (int(run["offset"]) + expert * int(run["stride"]) for run in (old, new))
            length = int(old["bytes"])
            was, now = (m[0]["weight"][i : i + length] for m, i in ((engine.cpu.memory, a), (memory, b)))
            np.testing.assert_array_equal(was, now)
            matrix = 0 if tile["gathered"] else int(tile["begin"])
            places.append((b, names[tile["tensor"]], expert, matrix, int(tile["row_begin"]), length))
    places = sorted(set(places))
    read = [name for _, name, *_ in places]
    assert list(dict.fromkeys(read)) == sorted(set(read))  # one digit layers: by number is by letter
    assert [p[1:5] for p in places] == sorted(p[1:5] for p in places)
    assert all(p[0] + p[5] <= q[0] for p, q in pairwise(places))
    for old, new in zip(engine.tables["buffers"], tables["buffers"], strict=True):
        if fmt.ARENAS[old["arena"]] == "weight":
            pairs = (engine.cpu.memory, old), (memory, new)
            np.testing.assert_array_equal(*(m[0]["weight"][int(b["offset"]) :][: int(b["bytes"])] for m, b in pairs))
        else:
            assert old == new


def test_names_are_sorted_by_their_numbers() -> None:
    names = ["lm_head.weight", "model.layers.10.a", "model.layers.2.b", "model.layers.2.a", "model.norm"]
    wanted = ["lm_head.weight", "model.layers.2.a", "model.layers.2.b", "model.layers.10.a", "model.norm"]
    assert sorted(names, key=ablate._natural) == wanted


# Rounds and figures.


def round_of(before: float, after: float, ms: float, **others: float) -> Round:
    """A round in which kernel A is a little faster than B."""
    return Round({A: before, B: before * 0.99}, {A: after, B: after * 0.99}, {ENGINE: ms, **others})


def test_unsteady_rounds_are_left_out() -> None:
    calm = [round_of(60 + i, 61 - i, 10) for i in range(4)]
    jumps = [round_of(35, 60, 15), round_of(60, 36, 15)]
    assert steady([calm[0], jumps[0], *calm[1:], jumps[1]]) == calm
    wild = [round_of(30, 30 * (1.2 + i / 10), 10) for i in range(7)]
    assert steady(wild) == wild[:4]
    assert best_kernel(calm) == A
    assert round_of(30, 60, 1).bandwidth(A) == pytest.approx(40)


def test_figures_follow_from_the_rounds(engine: tilecompile.Engine) -> None:
    steps = rounds.Steps(range(20, 24), 2)
    made = Roof(engine, 1 << 16)
    ran = [round_of(b, b, m, barrier=m * f) for b, m, f in ((40, 2, 1.5), (20, 4, 1.25), (10, 6, 1.0))]
    found = report.figures(engine, ran, steps, made, {A: 40.0, B: 39.0})
    size = found["bytes_per_step"]
    assert [r["roof_fraction"] for r in found["rounds"]] == pytest.approx([size / 80e6, size / 80e6, size / 60e6])
    assert found["roof_fraction"] == pytest.approx(size / 80e6)
    assert (found["ms_per_step"], found["read_bandwidth_gbs"], found["steps_per_round"]) == (4, pytest.approx(20), 8)
    assert found["spread"] == {"min": 2, "lower_quartile": 3, "upper_quartile": 5, "max": 6}
    (barrier,) = found["ablation"]
    assert (barrier["name"], barrier["ms_per_step"], barrier["ratio"]) == ("barrier", 5, 1.25)


# The command.


def test_json_has_the_figures_of_every_round(tiny: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablate, "without_prefetch", lambda engine: nullcontext(engine.cpu.library))  # saves a build
    result = run(tiny, "--context", 40, "--threads", 2, "--rounds", 5, "--ablate", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {line.split(" s  ")[1] for line in result.stderr.splitlines()} >= {"load", "read kernels", "rounds"}
    assert (found["context"], found["threads"], found["model"]) == (40, 2, "model")
    assert found["tokens_per_second"] == pytest.approx(1e3 / found["ms_per_step"])
    first, last = found["contexts"]
    assert first <= 40 <= last
    reads = json.loads((tiny / "engine.json").read_text())["programs"][0]["reads"]
    mean = reads["fixed"] + sum(
        c["row_bytes"] * np.mean([min(n, c["rows"]) * (n > c["above"]) for n in range(first, last + 1)])
        for c in reads["caches"]
    )
    assert found["bytes_per_step"] == pytest.approx(mean)
    assert len(found["rounds"]) + found["rounds_left_out"] == 5
    for r in found["rounds"]:
        assert r["roof_fraction"] == pytest.approx(mean / 1e6 / r["ms_per_step"] / r["read_bandwidth_gbs"])
    spreads = {"ms_per_step": "spread", "read_bandwidth_gbs": "read_bandwidth_spread"}
    for key, spread in (spreads | {"roof_fraction": "roof_fraction_spread"}).items():
        values = [r[key] for r in found["rounds"]]
        assert found[key] == pytest.approx(np.median(values))
        assert found[spread]["min"] == min(values)
        assert found[spread]["max"] == max(values)
    assert 0 < found["roof_fraction"] < 1
    assert len(found["read_kernels"]) == len(KERNELS)
    assert found["read_kernel"] in [k["name"] for k in found["read_kernels"][: roof.FINALISTS]]
    assert [v["name"] for v in found["ablation"]] == [ablate.BARRIER, ablate.NO_PREFETCH, ablate.NO_TAPES]
    assert all(v["ratio"] > 0.1 for v in found["ablation"])
    assert found["peers"] == []
    assert {"cpu", "cores", "isa", "memory_bytes", "gpus"} == set(found["machine"])
    held = found["memory"]
    assert held["weights_bytes"] == (tiny / "weights" / "device0.bin").stat().st_size
    assert held["resident_bytes"] > held["resident_growth_bytes"]


def test_the_table_shows_peers_and_their_failures(tiny: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def bench(name: str, **rest: Any) -> dict[str, Any]:
        rest["progress"]("importing", 0, 1)
        asked[name] = rest
        if name == "torch-compile":
            raise peers.PeerError("peer torch-compile: not enough memory")
        read = {
            "dtype": "f32",
            "prompt_tokens": rest["prompt_tokens"],
            "ms": 80.0,
            "settings": {"experts": "grouped_mm"},
        }
        about = {"settings": {"experts": "batched_mm"}, "prefill": [read]}
        return {"name": name, "ms_per_step": 50.0, "spread": [49.0, 52.0], **about}

    monkeypatch.setattr(peers, "bench", bench)
    args = (tiny, "--rounds", 1, "--context", 40, "--against", "transformers, torch-compile")
    found = answer(*args)
    first, second = found["peers"]
    assert first["ratio"] == 50 / first["engine_ms_per_step"]
    assert first["spread"] == {"min": 49, "max": 52}
    (read,) = first["prefill"]
    assert read["prompt_tokens"] == found["prefill"]["prompt_tokens"] == 70
    assert read["ratio"] == 80 / read["engine_ms"]
    assert second == {"name": "torch-compile", "error": "peer torch-compile: not enough memory"}
    assert asked["transformers"]["context"] == 40
    assert asked["transformers"]["threads"] == found["threads"]
    monkeypatch.setattr(peers, "check", lambda name: "not installed: torch" if name == "torch-compile" else None)
    result = run(*args)
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.replace("│", " ").split())
    assert "not installed: torch" in words
    assert "experts batched_mm" in words
    assert "experts grouped_mm" in words
    assert "roof fraction" in words
    assert "transformers: importing" in result.stderr


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--context", "20000"], "context is 20000, want 2 to 16384"),
        (["--context", "1"], "context is 1, want 2 to 16384"),
        (["--threads", "5"], "threads is 5, want 1 to 4"),
        (["--threads", "0"], "threads is 0, want 1 to 4"),
        (["--rounds", "0"], "--rounds is 0, want 1 to 10000"),
        (["--acceptance", "0.5,2"], "--acceptance has 2.0, want 0 to 1"),
        (["--acceptance", "x"], "--acceptance is 'x', want numbers from 0 to 1 with commas between them"),
        (["--text", "no/where"], "--text no/where: can't be read: "),
        (["--against", "llama"], "peer 'llama' is unknown, want one of: transformers, torch-compile"),
        (["--against", ","], "--against is ',', want peers with commas between them"),
        (["--model", "x"], "--model says where peers get the weights: give --against too"),
        (["--against", "transformers", "--model", "no/where"], "--model no/where: want a folder with config.json"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(tiny: Path, args: list[str], line: str) -> None:
    assert line in refused(tiny, *args)


def test_peers_of_a_checkpoint_engine_need_the_checkpoint(tiny: Path, tmp_path: Path) -> None:
    engine = damage.copy(tiny, tmp_path / "engine")
    damage.edit_manifest(engine, lambda data: data["weights"].update(source="checkpoint"))
    assert "give --model FOLDER" in refused(engine, "--against", "transformers")


def test_ablation_is_refused_without_a_compiler_or_memory(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no C++ compiler found: $CXX names 'no-such-compiler'" in refused(tiny, "--ablate")
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(ablate, "free_memory", lambda: 1000)
    late = run(tiny, "--ablate")  # the engine has been loaded
    assert late.exit_code == 2
    assert "bytes for the weights in checkpoint order, the machine has 1000 free" in late.stderr.splitlines()[-1]


def test_help_explains_the_measurement() -> None:
    shown = run("--help").stdout
    assert re.search(r"Example:\n +tilecompile bench ", shown)
    assert "own prefetchers on" in " ".join(shown.split())


def test_read_kernels_are_named_by_their_variant() -> None:
    assert ReadKernel(1, -1, 0, True).name == "1 stream, no prefetch, huge pages"
    assert ReadKernel(2, 0, 4096, False).name == "2 streams, prefetch NTA 4 KB ahead, normal pages"
    assert len({kernel.name for kernel in KERNELS}) == len(KERNELS)
