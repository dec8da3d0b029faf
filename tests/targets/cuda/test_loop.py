"""The GPU's persistent loop and weight ring, their own text, on a host that tracks what orders every access.

No GPU is needed, and none of this has run on one: see tests/support/cuda_host/simulation.h for what takes its place.
"""

from __future__ import annotations

import ctypes
import random

import numpy as np
import pytest

from support.cuda_mistakes import BUGS, planted
from support.cuda_programs import NEXT, PLAIN, VOCAB, Case, Task, two_tasks
from support.cuda_protocol import HEADERS, Result, build, random_run, request, run
from tilecompile.runtime import format as fmt
from tilecompile.runtime.cuda.tables import device_tables
from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.format import Reason, State
from tilecompile.runtime.kernel import REASONS
from tilecompile.targets.cuda.build import ARCHITECTURES, check_instructions, check_resources, instructions
from tilecompile.targets.cuda.build import build as build_cubin
from tilecompile.targets.cuda.emit import front, once


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The harness with mistakes that can be chosen; none is."""
    return build(tmp_path_factory.mktemp("cuda"), planted)


def first_error(library: ctypes.CDLL, seeds: range) -> Result | None:
    """The first of some random runs that fails."""
    return next((r for r in (random_run(library, seed) for seed in seeds) if r.error), None)


def test_random_programs_are_ordered_and_compute_the_right_results(library: ctypes.CDLL) -> None:
    """Programs with waits, slots, gates, several steps, requests and devices: ordered, and with the right results.

    Many cases have several programs, with events and steps of several tokens of their own.
    """
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
        row = int(tables["instructions"]["wait_begin"][case.place[case.tasks.index(task)]])
        assert tables["waits"][row]["event"] == event
        tables["waits"]["count"][row] += 1

    result = run(library, case, [request(random.Random(1))], 1, stall_ms=100, change=too_many)
    assert result.error == "stalled"
    found = {int(w): s for w, s in enumerate(result.stalls) if s["waits"]}
    mine = found[task.worker]
    assert (int(mine["event"]), int(mine["have"]), int(mine["want"])) == (event, count, count + 1)
    assert (int(mine["instruction"]), int(mine["agent"])) == (case.place[case.tasks.index(task)], 0)
    assert int(mine["sequence"]) == 1
    assert found.keys() - {task.worker}, "the sink waits too"


@pytest.mark.parametrize("cut", [-192, 512])
def test_a_loader_that_disagrees_with_a_body_is_a_stall(library: ctypes.CDLL, cut: int) -> None:
    """A body that takes more slots than the loader gives, or fewer: the block reports that it waits for its loader."""
    case = two_tasks(NEXT, workers=1)
    case.tasks[0].flags, case.tasks[0].tape, case.pool = fmt.PREDICATED, [(256, 64, 0, -1)], 1024
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
        assert first.reason == Reason.ABORTED or first.generated >= 4, "the host may be too late"
        assert (second.state, second.reason, second.generated) == (State.IDLE, Reason.MAX_NEW, 2)
        if first.reason == Reason.ABORTED and first.generated < 4:
            return
    raise AssertionError("no abort came in time")


def test_a_request_pauses_once_a_token(library: ctypes.CDLL) -> None:
    """Where it waits for masks: after every token but the last, and never otherwise."""
    for seed in range(6):
        rng = random.Random(seed)
        asks = [request(rng, position=0, max_new=n, count=2, masks=m) for n, m in ((4, 1), (3, 0), (1, 1))]
        result = run(library, Case(rng), asks, seed)
        assert not result.error, seed
        assert [a.pauses for a in result.asks] == [3, 0, 0]


def test_a_stop_ends_a_running_request(library: ctypes.CDLL) -> None:
    """The kernel ends by itself in the middle of a request; a bulk copy must not outlive its block."""
    reasons = []
    for seed in range(10):
        rng = random.Random(seed)
        result = run(library, Case(rng), [request(rng, position=0, max_new=6, stop_at=1, count=1)], seed)
        assert not result.error, seed
        reasons.append(result.answers[0].reason)
    assert Reason.ABORTED in reasons


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


def test_a_loader_runs_ahead_of_requests_if_one_program_is_launched(library: ctypes.CDLL) -> None:
    """Before any request it fills the ring, whatever other programs the tables have; of several it can't know which."""
    copies = {"one": 0, "one of several": 0, "several": 0}
    for seed in range(40):
        case = Case(random.Random(seed), programs=1 + seed % 3)
        several = (
            "several" if case.programs.only == fmt.NONE else "one of several" if len(case.programs.rows) > 1 else "one"
        )
        result = run(library, case, [], seed)
        assert not result.error
        copies[several] += result.copies
    assert copies["one"] > 0
    assert copies["one of several"] > 0
    assert copies["several"] == 0


def test_streams_of_programs_that_nothing_runs_are_empty() -> None:
    """And nothing of theirs is among the runs of a loader; what is launched has all that it has beside them."""
    made = (Case(random.Random(seed), programs=2) for seed in range(100))
    case = next(c for c in made if c.devices == 1 and len(c.programs.launched) == 1)
    tables, places = case.tables(), np.arange(len(case.buffers), dtype=np.uint64) * 64
    launched = case.programs.launched[0]
    alone, both = (device_tables(tables, 0, programs, [0], places, [0]) for programs in ([launched], [0, 1]))
    streams, beside = (t.streams.reshape(2, case.blocks) for t in (alone, both))
    other = streams[1 - launched]
    assert (other["begin"] == other["end"]).all()
    assert (other["run_begin"] == other["run_end"]).all()
    assert np.array_equal(streams[launched][["begin", "end"]], beside[launched][["begin", "end"]])
    mine = [i for s in streams[launched] for i in range(s["begin"], s["end"])]
    owners = both.runs["instruction"]
    assert np.array_equal(alone.runs["instruction"], owners[np.isin(owners, mine)])
    assert len(alone.runs) < len(both.runs)


def test_tables_that_a_gpu_can_not_run_are_refused() -> None:
    """An expert that no event announces, and runs that bulk copies can't read."""
    case = next(c for c in (Case(random.Random(s)) for s in range(100)) if any(t.slots for t in c.tasks))
    tables = case.tables()
    places = np.arange(len(tables["buffers"]), dtype=np.uint64) * 64

    def resolve(changed: dict[str, np.ndarray]) -> None:
        for device in range(case.devices):
            device_tables(changed, device, [0], [0] * case.devices, places, [0] * case.devices)

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
    parts = [front(fmt.BLOCK, ("sync.cuh", *HEADERS)), TRIVIAL]
    built = build_cubin(once("\n".join(parts)), architecture, flags=flags)
    check_resources("the loop", built.kernels["kernel"], 227 * 1024)
    check_instructions("the loop", instructions(built.ptx)["kernel"], NEEDED)
    assert built.kernels["kernel"].registers <= 128, "bodies need room"
