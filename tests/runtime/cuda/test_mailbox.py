"""How the host reads a GPU's status record while the kernel writes it: a poll at every moment."""

from __future__ import annotations

from itertools import combinations_with_replacement
from types import SimpleNamespace
from typing import Any

from tilecompile.runtime.cuda.kernel import CudaKernel
from tilecompile.runtime.format import State

BEFORE = {"request": 0, "state": State.IDLE, "fed": 5, "generated": 3, "reason": 2, "steps": 7}
STORES = (
    *({"fed": 0}, {"generated": 0}, {"reason": 0}, {"state": State.RUNNING}, {"request": 1}),
    *({"steps": 8}, {"fed": 1}, {"generated": 1}, {"reason": 1}, {"state": State.IDLE}),
)
"""The record after a request, and what control.cuh stores during the next one (an id, a token), in its order."""

READS = 6


class Written:
    """The record, of which the i-th read sees the first `seen[i]` stores."""

    def __init__(self, seen: tuple[int, ...]) -> None:
        self.seen = list(seen)

    def __getitem__(self, name: str) -> int:
        if name not in BEFORE:  # counts of programs and drafts, which are read after the others
            return 0
        record = dict(BEFORE)
        for store in STORES[: self.seen.pop(0)]:
            record |= store
        return record[name]


def test_a_request_ends_with_all_that_it_gave() -> None:
    states = set()
    for seen in combinations_with_replacement(range(len(STORES) + 1), READS):
        mail: Any = SimpleNamespace(rows=1, host={"status": [Written(seen)]})
        kernel = CudaKernel(mail, {}, [], 1000, lambda: None, lambda: None)
        kernel._submitted = 1
        state = kernel._poll()
        found = tuple(kernel.field(name) for name in ("fed", "generated", "reason"))
        states.add(state)
        if state == State.IDLE:
            assert found == (1, 1, 1), seen
        else:
            assert found[0] <= 1, seen
            assert found[1] <= 1, seen
    assert states == {State.IDLE, State.RUNNING}
