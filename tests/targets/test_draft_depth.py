"""The depth that the engine finds by itself, through the compiled header: it ends where simulated costs say."""

from __future__ import annotations

import ctypes
import random
import subprocess

import pytest

from tilecompile.runtime import format as fmt
from tilecompile.targets.cpu.build import find_compiler
from tilecompile.targets.cpu.emit import DEPTH

CALL = """
static DraftDepth depth;
extern "C" {
void begin(uint32_t most) { depth.begin(most); }
void decoded(double ns) { depth.decoded(ns); }
void extended(double ns) { depth.extended(ns); }
void drafted(double ns) { depth.drafted(ns); }
void verified(uint32_t drafts, uint32_t taken, double ns) { depth.verified(drafts, taken, ns); }
uint32_t chosen() { return depth.depth(); }
}
"""


class Simulated:
    """Rounds with given costs: a step of the model of 1 + `verify` a draft, an extension, a draft; acceptance of each
    draft given those before it."""

    def __init__(self, library: ctypes.CDLL, acceptance: float, verify: float, extend: float, draft: float) -> None:
        self.library, self.acceptance = library, acceptance
        self.verify, self.extend, self.draft = verify, extend, draft
        self.rng = random.Random(1)
        self.tokens, self.time = 0, 0.0

    def spend(self, cost: float) -> ctypes.c_double:
        self.time += cost
        seen = cost * self.rng.uniform(0.9, 1.1) * (1 if self.rng.random() < 0.97 else 8)  # some steps are interrupted
        return ctypes.c_double(1e6 * seen)

    def round(self, depth: int) -> None:
        if depth == 0:
            self.library.decoded(self.spend(1))
            self.tokens += 1
            return
        self.library.extended(self.spend(self.extend))
        for _ in range(depth - 1):
            self.library.drafted(self.spend(self.draft))
        taken = 0
        while taken < depth and self.rng.random() < self.acceptance:
            taken += 1
        self.library.verified(depth, taken, self.spend(1 + self.verify * depth))
        self.tokens += 1 + taken

    def rate(self, depth: int) -> float:
        """Tokens a unit of time at a fixed depth, expected."""
        made = sum(self.acceptance**i for i in range(depth + 1))
        return made / (1 + (depth and self.verify * depth + self.extend + (depth - 1) * self.draft))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("depth")
    text = "\n".join([fmt.c_header(), DEPTH.read_text(), CALL]).replace("#pragma once\n", "")
    (folder / "depth.cpp").write_text(text)
    options = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    command = [find_compiler(), *options, "-o", str(folder / "depth.so"), str(folder / "depth.cpp")]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "depth.so"))


@pytest.mark.parametrize("acceptance", [0.1, 0.4, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("costs", [(0.05, 0.05, 0.05), (0.3, 0.1, 0.1), (0.6, 0.2, 0.2), (0.9, 0.5, 0.5)])
def test_the_rate_is_near_that_of_the_best_depth(
    library: ctypes.CDLL, acceptance: float, costs: tuple[float, float, float]
) -> None:
    """Once it has settled: without, and with what it still tries now and then."""
    one = Simulated(library, acceptance, *costs)
    library.begin(fmt.MAX_DRAFTS)
    assert library.chosen() == fmt.MAX_DRAFTS
    for _ in range(600):
        one.round(library.chosen())
    settled_tokens, settled = one.tokens, one.time
    for _ in range(2000):
        one.round(library.chosen())
    rate = (one.tokens - settled_tokens) / (one.time - settled)
    assert rate > 0.92 * max(one.rate(depth) for depth in range(fmt.MAX_DRAFTS + 1))


def test_it_follows_a_text_that_becomes_easy(library: ctypes.CDLL) -> None:
    one = Simulated(library, 0.05, 0.3, 0.1, 0.1)
    library.begin(5)
    for _ in range(300):
        one.round(library.chosen())
    assert library.chosen() <= 1
    one.acceptance = 0.95
    for _ in range(3000):
        one.round(library.chosen())
    assert library.chosen() >= 4


def test_no_drafts_are_asked_for_where_none_can_be_made(library: ctypes.CDLL) -> None:
    library.begin(0)
    assert library.chosen() == 0
