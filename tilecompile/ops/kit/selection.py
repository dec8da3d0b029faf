"""GPU steps of an exact selection of the k largest keys, as macros for bodies.

A histogram of 2048 intervals over the range of the keys says which of them contains the k-th largest; that one is
divided again, at most three times in all. Scores are compared as integers (`ordered`). Then each thread takes a stretch
of positions, counts the selected ones, and writes them after those of the threads before it.
"""

from typing import Any

from tilecompile.ops.kit.body import THREADS, Flavor
from tilecompile.runtime.format import INTERVAL_BITS

BITS = INTERVAL_BITS
"""Bits of an interval's number."""

BINS = 1 << BITS
EACH = BINS // THREADS
ROUNDS = -(-32 // BITS)

LOWEST, HIGHEST = -(2**31), 2**31 - 1


def ordered(bits: Any) -> Any:
    """The i32 that compares as the f32 with these bits (i32) does, except that -0 is one less than 0."""
    import tilelang.language as T

    return T.bitwise_xor(bits, T.bitwise_and(T.shift_right(bits, 31), HIGHEST))


def signed(word: Any) -> Any:
    """The i32 that compares as the u32 with the bits of `word` does; its own inverse."""
    import tilelang.language as T

    return T.cast(T.bitwise_xor(T.cast(word, "uint32"), T.uint32(1 << 31)), "int32")


def above(number: Any, base: Any) -> Any:
    """The difference of two i32, u32; `number` must not be less than `base`."""
    import tilelang.language as T

    return T.cast(number, "uint32") - T.cast(base, "uint32")


class Selector:
    """The steps of a selection, as macros; `load(own, i, source, at)` stores in own[i] the key that source has at `at`.

    Shared memory: bins [BINS], sums and ties [2, THREADS], found [2]; fragments own, part and equal [THREADS]; state
    [6], which every thread computes for itself. `find` leaves the want-th largest key in state[0], and in state[2] how
    many of those equal to it are selected; `take` writes the positions of the keys above and of those, in order.
    """

    def __init__(self, f: Flavor, load: Any) -> None:
        import tilelang.language as T

        @T.macro
        def scan(sums):
            for d in T.serial(8):
                for i in f.lanes():
                    sums[(d + 1) % 2, i] = sums[d % 2, i] + T.if_then_else(
                        i >= T.shift_left(1, d), sums[d % 2, T.max(i - T.shift_left(1, d), 0)], 0
                    )

        @T.macro
        def find(bins, sums, found, own, part, equal, state, source, at, n, want):
            most = f.fragment((1,), "int32")
            least = f.fragment((1,), "int32")
            for i in f.lanes():
                part[i] = LOWEST
                equal[i] = HIGHEST
                for k in T.serial(T.ceildiv(n, THREADS)):
                    if k * THREADS + i < n:
                        load(own, i, source, at + k * THREADS + i)
                        part[i] = T.max(part[i], own[i])
                        equal[i] = T.min(equal[i], own[i])
            T.reduce_max(part, most, dim=0)
            T.reduce_min(equal, least, dim=0)
            # The lowest and the highest candidate, and how many of the candidates are selected.
            state[0] = least[0]
            state[1] = most[0]
            state[2] = want
            for _ in T.serial(ROUNDS):
                state[3] = 0  # bits of an interval
                for b in T.serial(32 - BITS):
                    if T.shift_right(above(state[1], state[0]), T.uint32(BITS + b)) != T.uint32(0):
                        state[3] = b + 1
                state[4] = T.if_then_else(state[0] == state[1], 0, n)  # keys to read
                for b in T.serial(EACH):
                    for i in f.lanes():
                        bins[b * THREADS + i] = 0
                for i in f.lanes():
                    if i == 0:
                        found[0] = 0
                        found[1] = state[2]
                for k in T.serial(T.ceildiv(state[4], THREADS)):
                    for i in f.lanes():
                        if k * THREADS + i < state[4]:
                            load(own, i, source, at + k * THREADS + i)
                            part[i] = T.cast(
                                T.shift_right(above(own[i], state[0]), T.cast(state[3], "uint32")), "int32"
                            )
                            if own[i] >= state[0] and own[i] <= state[1]:
                                if f.cpu:
                                    bins[part[i]] += 1
                                else:
                                    T.atomic_add(bins[part[i]], 1)
                # Thread i counts the i-th EACH bins from the top; one of them finds the interval.
                for i in f.lanes():
                    part[i] = 0
                    for b in T.serial(EACH):
                        part[i] += bins[BINS - 1 - i * EACH - b]
                    sums[0, i] = part[i]
                scan(sums)
                for i in f.lanes():
                    part[i] = T.if_then_else(i == 0, 0, sums[0, T.max(i - 1, 0)])
                    for b in T.serial(EACH):
                        equal[i] = bins[BINS - 1 - i * EACH - b]
                        if part[i] < state[2] and state[2] <= part[i] + equal[i]:
                            found[0] = BINS - 1 - i * EACH - b
                            found[1] = state[2] - part[i]
                        part[i] += equal[i]
                if state[4] > 0:
                    state[5] = T.shift_left(found[0], state[3])
                    state[0] = T.cast(T.cast(state[0], "uint32") + T.cast(state[5], "uint32"), "int32")
                    state[5] = T.shift_left(1, state[3]) - 1  # an interval's width, less one
                    if above(state[1], state[0]) > T.cast(state[5], "uint32"):
                        state[1] = T.cast(T.cast(state[0], "uint32") + T.cast(state[5], "uint32"), "int32")
                state[2] = found[1]

        @T.macro
        def take(sums, ties, own, part, equal, state, source, at, n, out, to):
            for i in f.lanes():
                part[i] = 0
                equal[i] = 0
                for k in T.serial(T.ceildiv(n, THREADS)):
                    if i * T.ceildiv(n, THREADS) + k < n:
                        load(own, i, source, at + i * T.ceildiv(n, THREADS) + k)
                        part[i] += T.cast(own[i] > state[0], "int32")
                        equal[i] += T.cast(own[i] == state[0], "int32")
                sums[0, i] = part[i]
                ties[0, i] = equal[i]
            scan(sums)
            scan(ties)
            for i in f.lanes():
                equal[i] = ties[0, i] - equal[i]
                part[i] = sums[0, i] - part[i] + T.min(equal[i], state[2])
                for k in T.serial(T.ceildiv(n, THREADS)):
                    if i * T.ceildiv(n, THREADS) + k < n:
                        load(own, i, source, at + i * T.ceildiv(n, THREADS) + k)
                        if own[i] > state[0]:
                            out[to + part[i]] = i * T.ceildiv(n, THREADS) + k
                            part[i] += 1
                        if own[i] == state[0]:
                            if equal[i] < state[2]:
                                out[to + part[i]] = i * T.ceildiv(n, THREADS) + k
                                part[i] += 1
                            equal[i] += 1

        self.scan, self.find, self.take = scan, find, take


def load_score() -> Any:
    """The macro that loads the key of a score."""
    import tilelang.language as T

    @T.macro
    def load(own, i, source, at):
        own[i] = ordered(T.reinterpret(source[at], "int32"))
        own[i] += T.cast(own[i] == -1, "int32")

    return load
