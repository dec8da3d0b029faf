"""The GPU's persistent loop and weight ring, their own text, on a host that tracks what orders every access.

No GPU is needed, and none of this has run on one: see tests/support/cuda_host/simulation.h for what stands in for it.
"""

from __future__ import annotations

import ctypes
import random
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.cuda_mistakes import BUGS, planted
from support.cuda_programs import IDS, NEXT, PLAIN, SAMPLED, VOCAB, Case, Task
from support.cuda_protocol import HEADERS, MAX_SEQ_LEN, Ask, Result, aligned, build, random_run, request, run
from tilecompile.runtime import format as fmt
from tilecompile.runtime.cpu.kernel import Kernel, open_kernel
from tilecompile.runtime.cuda.tables import device_tables
from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.kernel import IDLE, REASONS
from tilecompile.targets.cpu import emit as cpu_emit
from tilecompile.targets.cpu.build import find_compiler
from tilecompile.targets.cuda.build import ARCHITECTURES, check_instructions, check_resources, instructions
from tilecompile.targets.cuda.build import build as build_cubin
from tilecompile.targets.cuda.emit import header, once

ABORTED = REASONS.index("aborted")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The harness with mistakes that can be chosen; none is."""
    return build(tmp_path_factory.mktemp("cuda"), planted)


def first_error(library: ctypes.CDLL, seeds: range) -> Result | None:
    """The first of some random runs that goes wrong."""
    return next((r for r in (random_run(library, seed) for seed in seeds) if r.error), None)


def test_random_programs_are_ordered_and_compute_the_right_results(library: ctypes.CDLL) -> None:
    """Programs with waits, slots, gates, several steps, requests and devices: ordered, and with the right results."""
    for seed in range(70):
        assert not random_run(library, seed).error, f"seed {seed}"


@pytest.mark.slow
def test_thousands_of_random_programs_are_ordered_and_compute_the_right_results(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The unchanged text, on 2,500 programs."""
    plain = build(tmp_path_factory.mktemp("plain"))
    hints = 0
    for seed in range(1000, 3500):
        result = random_run(plain, seed)
        assert not result.error, f"seed {seed}"
        hints += result.hints
    assert hints > 1000


@pytest.mark.parametrize("name", BUGS)
def test_planted_mistakes_in_the_loop_are_caught(library: ctypes.CDLL, name: str) -> None:
    library.tc_bug(list(BUGS).index(name) + 1)
    try:
        assert first_error(library, range(60)), name
    finally:
        library.tc_bug(0)


def plain_case(seed: int = 1) -> Case:
    """A program on one device."""
    for number in range(seed, seed + 1000):
        case = Case(random.Random(number))
        if case.devices == 1 and len(case.events) > 3:
            return case
    raise AssertionError


def test_a_stall_says_who_waits_for_what(library: ctypes.CDLL) -> None:
    """An event that comes too seldom: all blocks leave, and the first waiting task is in the records."""
    case = plain_case()
    task = next(t for t in case.tasks if t.waits)
    event, count = task.waits[0]

    def too_many(tables: dict[str, np.ndarray]) -> None:
        row = int(tables["instructions"]["wait_begin"][case.sequence[case.tasks.index(task)]])
        assert tables["waits"][row]["event"] == event
        tables["waits"]["count"][row] += 1

    result = run(library, case, [request(random.Random(1))], 1, stall_ms=100, change=too_many)
    assert result.error == "stalled"
    found = {int(w): s for w, s in enumerate(result.stalls) if s["waits"]}
    mine = found[task.worker]
    assert (int(mine["event"]), int(mine["have"]), int(mine["want"])) == (event, count, count + 1)
    assert (int(mine["instruction"]), int(mine["agent"])) == (case.sequence[case.tasks.index(task)], 0)
    assert int(mine["sequence"]) == 1
    assert found.keys() - {task.worker}, "the sink waits too"


@pytest.mark.parametrize("cut", [-192, 512])
def test_a_loader_that_disagrees_with_a_body_is_a_stall(library: ctypes.CDLL, cut: int) -> None:
    """A body that takes more slots than the loader gives, or fewer: the block says that it waits for its loader."""
    case = two_tasks(NEXT, workers=1)
    case.tasks[0].flags, case.tasks[0].tape, case.pool = fmt.GATED, [(256, 64, 0, -1)], 1024
    case.tasks.insert(0, Task(0, PLAIN, 0, [], [], [(0, 256, 0, -1)]))
    assert not run(library, case, [request(random.Random(1))], 1).error
    result = run(library, case, [request(random.Random(1))], 1, stall_ms=100, cut=cut)
    assert result.error == "stalled"
    assert (int(result.stalls[0]["waits"]), int(result.stalls[0]["event"])) == (1, fmt.NONE)


def test_an_abort_ends_the_request_and_nothing_else(library: ctypes.CDLL) -> None:
    for seed in range(10):
        rng = random.Random(seed)
        asks = [request(rng, position=0, max_new=5, abort_at=1, count=1), request(rng, position=0, max_new=2, count=1)]
        result = run(library, Case(rng), asks, seed)
        assert not result.error, seed
        first, second = result.answers
        assert first.reason == ABORTED or first.generated >= 4, "the host may be too late"
        assert (second.state, second.reason, second.generated) == (IDLE, REASONS.index("length"), 2)
        if first.reason == ABORTED and first.generated < 4:
            return
    raise AssertionError("no abort came in time")


def test_a_stop_ends_a_running_request(library: ctypes.CDLL) -> None:
    """The kernel ends by itself in the middle of a request; a bulk copy must not outlive its block."""
    reasons = []
    for seed in range(10):
        rng = random.Random(seed)
        result = run(library, Case(rng), [request(rng, position=0, max_new=6, stop_at=1, count=1)], seed)
        assert not result.error, seed
        reasons.append(result.answers[0].reason)
    assert ABORTED in reasons


def test_requests_end_for_each_reason(library: ctypes.CDLL) -> None:
    """Stop ids, limits, a full context, a prompt alone; several requests on one launch."""
    seen = set()
    for seed in range(12):
        rng = random.Random(seed)
        asks = [request(rng, position=p, max_new=n) for p, n in ((0, 2), (5, 9), (1, 0))]
        result = run(library, Case(rng, 6), asks, seed, stops=(rng.randrange(VOCAB),), logits=True)
        assert not result.error, seed
        seen |= {REASONS[a.reason] for a in result.answers}
    assert seen == {"stop", "length", "context"}


def test_a_wrong_id_ends_the_request(library: ctypes.CDLL) -> None:
    def plain(tables: dict[str, np.ndarray]) -> None:
        tables["instructions"]["kind"][tables["instructions"]["kind"] == 3] = 1  # ids become hashes

    result = run(library, plain_case(), [request(random.Random(1), max_new=3)], 1, change=plain)
    assert (result.error, REASONS[result.answers[0].reason], result.answers[0].generated) == ("", "bad id", 0)


def test_tables_that_a_gpu_can_not_run_are_refused() -> None:
    """An expert that no event announces, and runs that bulk copies can't read."""
    case = next(c for c in (Case(random.Random(s)) for s in range(100)) if any(t.slots for t in c.tasks))
    tables = case.tables()
    places = np.arange(len(tables["buffers"]), dtype=np.uint64) * 64

    def resolve(changed: dict[str, np.ndarray]) -> None:
        for device in range(case.devices):
            device_tables(changed, device, [0] * case.devices, places, [0] * case.devices)

    resolve(tables)
    silent = tables | {"instructions": tables["instructions"].copy()}
    silent["instructions"]["notify_count"][tables["instructions"]["kind"] == 2] = 0
    with pytest.raises(EngineError, match="no event on device"):
        resolve(silent)
    odd = tables | {"tape": tables["tape"].copy()}
    odd["tape"]["bytes"] += 4
    with pytest.raises(EngineError, match="units of 16 bytes"):
        resolve(odd)


TRIVIAL = """
struct Bodies {
  static TC_DEVICE void run(uint32_t kind, const tc::Call& c) {
    const char* w = c.ring.wait();
    const float v = reinterpret_cast<const float*>(w)[tc::thread()];
    c.ring.release();
    c.arg<float>(0)[tc::thread()] = v + float(kind);
  }
};
extern "C" __global__ void __launch_bounds__(tc::THREADS, 1) kernel(const __grid_constant__ DeviceLaunch launch) {
  tc::resident<Bodies>(launch);
}
"""
NEEDED = (
    *("ld.relaxed.gpu", "ld.relaxed.sys", "fence.acq_rel.gpu", "fence.acq_rel.sys", "ld.acquire.sys", "st.release.sys"),
    *(
        "red.release.gpu",
        "red.release.sys",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes",
        "bar.sync",
    ),
    *("cp.async.bulk.prefetch.L2.global", "mbarrier.try_wait.parity", "mbarrier.arrive.expect_tx", "mbarrier.init"),
)


@pytest.mark.parametrize(("architecture", "flags"), list(zip(ARCHITECTURES, ((), ("-DTC_TIMES=4",)), strict=True)))
def test_the_loop_compiles_for_gpus_within_limits(architecture: str, flags: tuple[str, ...]) -> None:
    """NVRTC takes the same text; the PTX has the instructions that are meant and nothing in local memory."""
    parts = [fmt.c_header(), *(header(name) for name in ("sync.cuh", *HEADERS)), TRIVIAL]
    built = build_cubin(once("\n".join(parts)), architecture, flags=flags)
    check_resources("the loop", built.kernels["kernel"], 227 * 1024)
    check_instructions("the loop", instructions(built.ptx)["kernel"], NEEDED)
    assert built.kernels["kernel"].registers <= 128, "bodies need room"


CPU_BODIES = """
static uint32_t mix(uint32_t h, uint32_t v) {
  h = (h ^ v) * 0x9E3779B1u;
  return h ^ (h >> 15);
}
static uint32_t sampled(const Call& c) {  // what a task of harness.cpp makes of the id in buffer 0
  return mix(mix(mix(mix(1, c.ins->op), c.step->position), c.arg<uint32_t>(0)[0]), 0);
}
static void plain(const Call& c) { c.arg<uint32_t>(0)[2] = sampled(c); }
static void next(const Call& c) { c.arg<uint32_t>(0)[2] = sampled(c) % 5; }
using Body = void (*)(const Call&);
static const Body BODIES[] = {nullptr, plain, nullptr, next};
"""


def cpu_answers(library: ctypes.CDLL, case: Case, asks: list[Ask], stops: list[int]) -> list[tuple[Any, ...]]:
    """How the CPU's kernel answers requests, with the same tables."""
    tables, memory = case.tables(), aligned(case.words, np.uint32)
    places, pools = np.uint64(memory.ctypes.data) + tables["buffers"]["offset"], np.zeros(1, np.uint64)
    ids = np.array([*stops, 0], np.int32)
    launch = np.zeros(1, fmt.LAUNCH.dtype)
    for name in ("streams", "instructions", "operands", "waits", "notifies", "tape", "events"):
        launch[name] = tables[name].ctypes.data
    launch["buffers"], launch["pools"], launch["stops"] = places.ctypes.data, pools.ctypes.data, ids.ctypes.data
    launch["stream_count"], launch["event_count"] = len(tables["streams"]), len(tables["events"])
    launch["program_count"], launch["workers"], launch["threads"] = 1, case.blocks, 1
    launch["stop_count"], launch["vocab"], launch["max_seq_len"] = len(stops), VOCAB, MAX_SEQ_LEN
    launch["ids_buffer"], launch["position_buffer"], launch["next_buffer"], launch["stall_ms"] = 0, 1, 2, 1000
    kernel = Kernel(library, launch, (tables, memory, places, pools, ids))
    answers = []
    for ask in asks:
        record = np.zeros(1, fmt.REQUEST.dtype)
        prompt = np.array(ask.ids[:], np.int32)
        record["ids"], record["count"] = prompt.ctypes.data, ask.count
        record["position"], record["max_new"] = ask.position, ask.max_new
        assert kernel.submit(record, None) == 0
        while kernel.wait(100, 1000) != IDLE:
            pass
        fields = [kernel.field(name) for name in ("reason", "fed", "generated")]
        answers.append((*fields, kernel.tokens(0, fields[2])))
    kernel.close()
    return answers


def test_requests_end_as_on_a_cpu(library: ctypes.CDLL, tmp_path: Path) -> None:
    """The controller's decisions are those of the CPU's kernel: same reasons, same tokens."""
    texts = [(cpu_emit.KIT / name).read_text() for name in cpu_emit.FRONT]
    texts += [
        CPU_BODIES,
        *((cpu_emit.HERE / name).read_text() for name in ("worker.h", "profile.h", "loop.h", "abi.h")),
    ]
    source = tmp_path / "kernel.cpp"
    source.write_text(once("\n".join([fmt.c_header(), *texts, 'extern "C" const char tc_contract[] = "";'])))
    command = [find_compiler(), "-std=c++20", "-O1", "-march=native", "-shared", "-fPIC", "-pthread"]
    subprocess.run([*command, "-o", str(tmp_path / "kernel.so"), str(source)], check=True)
    cpu = open_kernel(tmp_path / "kernel.so")
    seen = set()
    for seed in range(40):
        rng = random.Random(seed)
        case = two_tasks(PLAIN if seed % 8 == 0 else NEXT)
        asks = [request(rng, position=rng.randint(0, 5), max_new=rng.randint(0, 6)) for _ in range(3)]
        stops = rng.sample(range(VOCAB), rng.randint(0, 2))
        want = cpu_answers(cpu, case, asks, stops)
        result = run(library, case, asks, seed, stops=tuple(stops))
        assert not result.error
        got = [(a.reason, a.fed, a.generated, list(a.tokens[: a.generated])) for a in result.answers]
        assert got == want, f"seed {seed}"
        seen |= {REASONS[a.reason] for a in result.answers}
    assert seen == {"stop", "length", "context", "bad id"}


def two_tasks(kind: int, workers: int = 2) -> Case:
    """A program that makes a token of the step's id, and its sink."""
    case = Case(random.Random(1), 3)
    case.devices, case.blocks, case.dispatched, case.events, case.pool = 1, workers, [], [], 0
    case.sink = Task(0, fmt.COMMIT_KIND, 0, [(SAMPLED, 0, 1, 0, 1)], [], [])
    case.tasks = [Task(workers - 1, kind, 0, [(IDS, 0, 1, 0, 1)], [(SAMPLED, 0, 1, 0, 1)], []), case.sink]
    case.order()
    return case
