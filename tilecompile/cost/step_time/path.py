"""The critical path of a step: from its sink back to its beginning, over what each task on it waited for last."""

from __future__ import annotations

from dataclasses import dataclass

from tilecompile.cost.step_time.spans import Gaps, Spans

EVENT, THREAD, START = "event", "thread", "start"


@dataclass(frozen=True)
class Link:
    """One task of the path, in nanoseconds from the step's beginning.

    It was on the path from `begin` to `until`: when the next task's last event had arrived, or when it was done. It
    began `gap` after `via`: its last "event", the task before it on its "thread", or the "start" of the step.
    """

    task: int
    begin: float
    until: float
    via: str
    gap: float


def critical_path(spans: Spans, gaps: Gaps) -> list[Link]:
    """The tasks of the path in their order in time. Gaps and works add up to the step."""
    found: list[Link] = []
    task, until = spans.tasks.sink, spans.duration
    while task >= 0:
        begin = min(float(spans.begin[task]), until)
        if spans.begin[task] > spans.wait_begin[task] and gaps.arrival[task] > gaps.free[task]:
            via, previous, left = EVENT, int(gaps.latest[task]), float(gaps.arrival[task])
        elif gaps.before[task] >= 0:
            via, previous, left = THREAD, int(gaps.before[task]), float(gaps.free[task])
        else:
            via, previous, left = START, -1, 0.0
        left = min(left, begin)
        found.append(Link(task, begin, until, via, begin - left))
        task, until = previous, left
    return found[::-1]
