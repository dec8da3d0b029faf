"""The event loop on schedules that are small enough to compute by hand, on random ones, and what must always hold."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from support.simulated_step import by_small_steps, loop
from tilecompile.cost.simulate.loop import Loop, Times, run_loop


def times(*streams: list[dict[str, Any]], **machine: Any) -> Times:
    return run_loop(loop(list(streams), **machine))


def test_a_workers_bytes_and_body_overlap() -> None:
    """Bytes and body overlap, what a task takes in any case comes on top."""
    found = times([{"bytes": 10, "body": 4, "start": 1}, {"bytes": 2, "body": 7, "start": 1}], single=2)
    assert found.begin.tolist() == [0, 6]
    assert found.end.tolist() == [6, 14]
    assert found.streamed.tolist() == [5, 7]
    assert found.read.tolist() == [12]
    assert found.before.tolist() == [-1, 0]


def test_a_notification_of_another_worker_takes_its_time() -> None:
    """Another worker's notification takes its time, one's own doesn't."""
    first = [{"body": 5, "notifies": "a"}, {"body": 1, "waits": "a"}]
    found = times(first, [{"body": 2, "waits": "a", "notifies": "b"}], [{"waits": "ab"}], event_ns=3)
    assert found.begin.tolist() == [0, 5, 8, 13]
    assert found.arrival.tolist() == [0, 5, 8, 13]
    assert found.latest.tolist() == [-1, 0, 0, 2]


def test_an_event_of_several_waits_for_the_last_notification() -> None:
    """All notifications must have come; the last to be seen is the one that counts."""
    found = times(
        [{"body": 5, "notifies": "a"}, {"waits": "a"}],
        [{"body": 4, "notifies": "a"}, {"waits": "a"}],
        [{"body": 4, "notifies": "a"}, {"waits": "a"}],
        event_ns=3,
    )
    assert found.begin[1::2].tolist() == [7, 8, 8]
    assert found.latest[1::2].tolist() in ([2, 0, 0], [4, 0, 0])


def test_workers_share_the_bandwidth_of_a_memory() -> None:
    """Two tasks read 30 bytes each at a joint rate of 6, then one alone at its own 4."""
    found = times([{"bytes": 30}], [{"bytes": 50}], single=4, total=6)
    assert found.end.tolist() == [10, 15]
    assert found.read.tolist() == [80]
    apart = times([{"bytes": 30}], [{"bytes": 50}], single=4, total=6, memories=[0, 1])
    assert apart.end.tolist() == [7.5, 12.5]
    assert apart.read.tolist() == [30, 50]


def test_a_ring_fetches_ahead_while_its_worker_waits() -> None:
    """While the second task waits until 10, the ring takes 3 of its 8 bytes."""
    streams = [[{"body": 10, "notifies": "a"}], [{"waits": "a", "bytes": 8}]]
    assert times(*streams).end.tolist() == [10, 18]
    assert times(*streams, ring_bytes=3).end.tolist() == [10, 15]
    assert times(*streams, ring_bytes=99).end.tolist() == [10, 10]
    short = times([{"body": 2, "notifies": "a"}], streams[1], ring_bytes=99)
    assert short.end.tolist() == [2, 8]


def test_a_loader_waits_before_experts_that_are_not_chosen() -> None:
    """A loader waits for experts that aren't chosen yet, and may fetch what follows meanwhile."""
    first = [{"body": 10, "notifies": "a"}]
    second = [{"waits": "a", "bytes": 4, "filler": 0}, {"bytes": 6}, {"bytes": 5}]
    assert times(first, second, ring_bytes=99).end.tolist() == [10, 14, 20, 25]
    assert times(first, second, ring_bytes=99, filler_ns=1).end.tolist() == [10, 15, 21, 26]
    hinted = times(first, second, ring_bytes=99, hint_bytes=8)
    assert hinted.end.tolist() == [10, 14, 14, 17]
    assert hinted.read.tolist() == [15]


def test_pushes_share_a_devices_link() -> None:
    """One push after the other goes over a device's link."""
    push = [{"link": 4, "body": 1}]
    assert times(push, push).end.tolist() == [4, 8]
    assert times(push, push, memories=[0, 1]).end.tolist() == [4, 4]


def test_a_thread_stays_with_a_worker_while_it_can_run() -> None:
    """A thread stays with a worker while that can run, then takes the next one that can; each poll takes time."""
    streams = [[{"body": 3}, {"body": 3, "waits": "x"}], [{"body": 5}], [{"body": 1, "notifies": "x"}]]
    found = times(*streams, threads=[0, 0, 0], poll_ns=0.5)
    # half a round of polls, worker 0, a poll, worker 1, a poll, worker 2, a poll, worker 0 again
    assert found.begin.tolist() == [0.5, 11, 4, 9.5]
    assert found.before.tolist() == [-1, 3, 0, 2]
    other = times(*streams, threads=[0, 0, 1], first_thread=0, wake_ns=7, event_ns=2)
    assert other.begin.tolist() == [0, 10, 3, 7]


def test_a_wait_that_nothing_ends_has_no_end() -> None:
    found = times([{"waits": "a"}, {"notifies": "a"}], [{"body": 1}])
    assert np.isnan(found.end).tolist() == [True, True, False]


@st.composite
def programs(draw: st.DrawFn, most: int = 10) -> list[list[dict[str, Any]]]:
    """At most `most` tasks of some workers; each may wait for tasks before it in a random total order."""
    workers = draw(st.integers(1, 4))
    streams: list[list[dict[str, Any]]] = [[] for _ in range(workers)]
    for i in range(draw(st.integers(1, most))):
        task = {
            "waits": draw(st.sets(st.integers(0, i - 1), max_size=2)) if i else set(),
            "notifies": [i],
            "bytes": draw(st.integers(0, 20)),
            "body": draw(st.integers(0, 12)),
            "start": draw(st.integers(0, 3)),
        }
        streams[draw(st.integers(0, workers - 1))].append(task)
    return [s for s in streams if s]


MACHINES = st.fixed_dictionaries(
    {
        "single": st.integers(1, 4),
        "total": st.integers(2, 9),
        "event_ns": st.integers(0, 5),
        "ring_bytes": st.sampled_from([0, 3, 10, 1000]),
    }
)


@settings(deadline=None, max_examples=25, phases=(Phase.explicit, Phase.generate))  # shrinking would take minutes
@given(programs(most=6), MACHINES)
def test_times_agree_with_a_simulation_in_small_steps(
    streams: list[list[dict[str, Any]]], machine: dict[str, int]
) -> None:
    made = loop(streams, **machine)
    found = run_loop(made)
    step = 1 / 32
    begin, end = by_small_steps(made, step)
    most = step * 3 * (1 + len(made.bytes))
    np.testing.assert_allclose(found.begin, begin, atol=most)
    np.testing.assert_allclose(found.end, end, atol=most)


@settings(deadline=None, max_examples=200)
@given(programs(), MACHINES, st.data())
def test_times_keep_the_order_of_a_schedule_and_the_rates_of_its_memory(
    streams: list[list[dict[str, Any]]], machine: dict[str, int], data: st.DataObject
) -> None:
    made = loop(streams, **machine)
    found = run_loop(made)
    assert not np.isnan(found.end).any()
    assert (found.begin >= found.arrival).all()
    assert (found.end >= found.begin + np.maximum(made.body_ns, 0) + made.start_ns - 1e-6).all()
    np.testing.assert_allclose(found.read.sum(), made.bytes.sum(), atol=1e-2)
    total = min(machine["single"] * len(streams), machine["total"])
    assert found.end.max() >= made.bytes.sum() / total - 1e-6
    again = run_loop(made)
    for a, b in zip(dataclasses.astuple(found), dataclasses.astuple(again), strict=True):
        np.testing.assert_array_equal(a, b)
    # No two workers read at once: then more of anything never makes a step shorter.
    alone = dataclasses.replace(made, total_rate=np.array([1e9]))
    before = run_loop(alone).end.max()
    for name in ("start_ns", "body_ns", "bytes", "notify_ns"):
        more = np.array(getattr(made, name))
        more[data.draw(st.integers(0, len(more) - 1))] += 5
        assert run_loop(dataclasses.replace(alone, **{name: more})).end.max() >= before - 1e-6
    faster = dataclasses.replace(alone, single_rate=2 * made.single_rate)
    assert run_loop(faster).end.max() <= before + 1e-6
    assert run_loop(dataclasses.replace(alone, ring_bytes=made.ring_bytes + 5.0)).end.max() <= before + 1e-6


def test_arrays_of_another_type_are_refused() -> None:
    made = loop([[{"bytes": 1}]])
    with pytest.raises(TypeError, match="bytes is float32, want a contiguous array of float64"):
        run_loop(dataclasses.replace(made, bytes=made.bytes.astype(np.float32)))
    assert isinstance(made, Loop)
