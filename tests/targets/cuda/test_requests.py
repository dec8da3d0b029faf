"""The GPU's loop decides about requests as the CPU's kernel does: same reasons, same tokens, on the same tables."""

from __future__ import annotations

import ctypes
import random
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from support.cuda_programs import IDS, LOGITS, NEXT, PLAIN, POSITION, SAMPLED, TOKENS, VOCAB, Case, two_tasks
from support.cuda_protocol import MAX_SEQ_LEN, Ask, aligned, build, request, run
from tilecompile.runtime import format as fmt
from tilecompile.runtime.cpu.kernel import Kernel, open_kernel
from tilecompile.runtime.kernel import REASONS
from tilecompile.targets.cpu import emit as cpu_emit
from tilecompile.targets.cpu.build import find_compiler
from tilecompile.targets.cuda.emit import once

CPU_BODIES = """
static uint32_t mix(uint32_t h, uint32_t v) {
  h = (h ^ v) * 0x9E3779B1u;
  return h ^ (h >> 15);
}
// What a task of harness.cpp makes of the step's ids: the words are those ids, the position, the sampled ids.
static void sample(const Call& c, uint32_t most) {
  uint32_t* words = c.arg<uint32_t>(0);
  uint32_t h = mix(mix(mix(1, c.ins->op), c.step->position), c.step->tokens);
  for (int i = 0; i < TOKENS; ++i) h = mix(h, words[i]);
  for (int i = 0; i < TOKENS; ++i) words[TOKENS + 1 + i] = mix(h, i) % most;
}
static void plain(const Call& c) { sample(c, ~0u); }
static void next(const Call& c) { sample(c, VOCAB); }
using Body = void (*)(const Call&);
static const Body BODIES[] = {nullptr, plain, nullptr, next};
"""


def cpu_answers(
    library: ctypes.CDLL, case: Case, asks: list[Ask], stops: list[int], threads: int
) -> list[tuple[Any, ...]]:
    """How the CPU's kernel answers requests, with the same tables."""
    tables, programs, memory = case.tables(), case.programs, aligned(case.words, np.uint32)
    tables["streams"] = tables["streams"][np.isin(tables["streams"]["program"], programs.launched)]
    places, pools = np.uint64(memory.ctypes.data) + tables["buffers"]["offset"], np.zeros(1, np.uint64)
    ids = np.array([*stops, 0], np.int32)
    launch = np.zeros(1, fmt.LAUNCH.dtype)
    for name in ("streams", "instructions", "operands", "waits", "notifies", "tape", "events"):
        launch[name] = tables[name].ctypes.data
    launch["buffers"], launch["pools"], launch["stops"] = places.ctypes.data, pools.ctypes.data, ids.ctypes.data
    launch["stream_count"], launch["event_count"] = len(tables["streams"]), len(tables["events"])
    programs.rows["next"], programs.rows["logits"] = places[SAMPLED], places[LOGITS]
    launch["programs"], launch["program_count"] = programs.rows.ctypes.data, len(programs.rows)
    launch["first_program"], launch["workers"], launch["threads"] = programs.first, case.blocks, threads
    launch["stop_count"], launch["vocab"], launch["max_seq_len"] = len(stops), VOCAB, MAX_SEQ_LEN
    launch["ids_buffer"], launch["position_buffer"] = IDS, POSITION
    launch["sampling_buffer"] = launch["bias_buffer"] = launch["counts_buffer"] = fmt.NONE
    launch["stall_ms"] = 1000
    kernel = Kernel(library, launch, (tables, memory, places, pools, ids))
    answers = []
    for ask in asks:
        record = np.zeros(1, fmt.REQUEST.dtype)
        prompt = np.array(ask.ids[:], np.int32)
        record["ids"], record["count"] = prompt.ctypes.data, ask.count
        record["position"], record["max_new"] = ask.position, ask.max_new
        assert kernel.submit(record, None) == 0
        while kernel.wait(100, 1000) != fmt.State.IDLE:
            pass
        fields = [kernel.field(name) for name in ("reason", "fed", "generated")]
        answers.append((*fields, kernel.tokens(0, fields[2])))
    kernel.close()
    return answers


def test_requests_end_as_on_a_cpu(tmp_path: Path) -> None:
    """One to three programs, steps of one to three tokens."""
    library = build(tmp_path / "gpu")
    texts = [(cpu_emit.KIT / name).read_text() for name in cpu_emit.FRONT]
    texts.append(f"constexpr int TOKENS = {TOKENS}, VOCAB = {VOCAB};{CPU_BODIES}")
    loop = (cpu_emit.HERE / name for name in cpu_emit.LOOP if name != "roof.h")
    texts += [path.read_text() for path in (cpu_emit.RULES, cpu_emit.DEPTH, *loop)]
    source = tmp_path / "kernel.cpp"
    source.write_text(once("\n".join([fmt.c_header(), *texts, 'extern "C" const char tc_contract[] = "";'])))
    command = [find_compiler(), "-std=c++20", "-O1", "-march=native", "-shared", "-fPIC", "-pthread"]
    subprocess.run([*command, "-o", str(tmp_path / "kernel.so"), str(source)], check=True)
    cpu = open_kernel(tmp_path / "kernel.so")
    seen = set()
    for seed in range(40):
        rng = random.Random(seed)
        case = two_tasks(PLAIN if seed % 8 == 0 else NEXT, programs=rng.choice([1, 1, 2, 3]))
        asks = [request(rng, position=rng.randint(0, 4), max_new=rng.randint(0, 6)) for _ in range(3)]
        stops = rng.sample(range(VOCAB), rng.randint(0, 2))
        want = cpu_answers(cpu, case, asks, stops, 1 + seed % 2)
        result = run(library, case, asks, seed, stops=tuple(stops))
        assert not result.error
        got = [(a.reason, a.fed, a.generated, list(a.tokens[: a.generated])) for a in result.answers]
        assert got == want, f"seed {seed}"
        seen |= {REASONS[a.reason] for a in result.answers}
    assert seen == {"stop", "length", "context", "bad id"}
