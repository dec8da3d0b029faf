"""The script for a real GPU (tests/gpu), as far as it goes without one."""

from __future__ import annotations

import pytest
from gpu import ops
from gpu.cases import Trial, trials
from gpu_host import HostCard, host_kernel

QUICK = ("rms_norm", "cache_append", "linear", "expert_linear")


@pytest.mark.parametrize("op", [op if op in QUICK else pytest.param(op, marks=pytest.mark.slow) for op in ops.ALL])
def test_ops_on_the_host(op: str) -> None:
    """Part `ops`, whose launches run the bodies' text on the host: tables, weights and comparisons are as on a GPU."""
    some = small(op)
    kernel = host_kernel(some)
    for trial in some:
        card = HostCard()
        found = ops.run_trial(card, kernel, kernel.of_node[trial.case.node.name].index, trial)
        assert found["wrong"] is None, found
        assert not card.held


def small(op: str) -> list[Trial]:
    """Trials of an op that the host runs in no time."""
    found = trials(op, 1)
    return found if op not in QUICK else found[:4]
