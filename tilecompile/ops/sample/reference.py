"""The rules of sampling in numpy: which ids are allowed, with which noise, and which of them is taken.

In the order of transformers' processors: bias, repetition penalty, presence and frequency penalties, minimal length,
temperature, top-k, top-p, min-p. Of what is left the id with the largest logit / temperature + g(seed, position, id) is
taken, the lowest at ties. With g Gumbel noise, ids are so drawn by their softmax (the Gumbel-max trick), and the draw
depends on nothing but these numbers (Daliri, Musco, Suresh 2024).

Everything is equal to the CPU body bit for bit: sums and products in one order, in the type that is stated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.format import BIASED, COUNTED, NOT_FINITE_ID, NOTHING_ALLOWED_ID

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint32]
Masses = npt.NDArray[np.uint64]

LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10

MASS = 2.0**40
"""Units of a probability relative to the likeliest id's: whole numbers, whose sums have no order."""


def choose(record: Any, logits: F32, bias: F32, counts: I32, ids: I32, position: int) -> int:
    """The id that follows `ids`, the first of which is at `position`; the record is a SAMPLING row.

    NOT_FINITE_ID if a logit isn't a finite number, NOTHING_ALLOWED_ID if no id is allowed.
    """
    if not np.isfinite(logits).all():
        return NOT_FINITE_ID
    x = adjusted(record, logits, bias, counts, ids, position)
    likeliest = int(x.argmax())
    if x[likeliest] == -np.inf:
        return NOTHING_ALLOWED_ID
    if record["temperature"] == 0:
        return likeliest
    x = x / record["temperature"] + np.float32(0)
    left = kept(record, x)
    y = x[left] + gumbel(words(int(record["seed"]), position + len(ids), len(x)))[left]
    return int(left[y.argmax()])


def adjusted(record: Any, logits: F32, bias: F32, counts: I32, ids: I32, position: int) -> F32:
    """The logits with bias and penalties; minus infinity for ids that aren't allowed."""
    flags = int(record["flags"])
    x = logits + bias if flags & BIASED else logits.copy()
    if flags & COUNTED:
        counts = counts.copy()
        for i, token in enumerate(ids):
            counts[token] = counts[token] | 1 if position + i < record["text_begin"] else counts[token] + 2
        seen, text = counts > 0, counts > 1
        repeated = np.where(x < 0, x * record["repetition"], x / record["repetition"])
        x = np.where(seen, repeated, x)
        often = record["frequency"] * (counts >> 1).astype(np.float32)
        x = np.where(text, (x - often) - record["presence"], x)
    if position + len(ids) < record["stop_begin"]:
        x[record["stops"][: record["stop_count"]]] = -np.inf
    return x


def kept(record: Any, x: F32) -> npt.NDArray[np.intp]:
    """The ids that top-k, top-p and min-p leave, ascending; `x` are the logits over the temperature.

    top-k keeps all that equal the k-th. top-p drops ids from the least likely on as long as their probabilities sum up
    to no more than 1 - p, of equal ones the lowest first, but never the last.
    """
    left = np.arange(len(x))
    top_k = int(record["top_k"])
    if 0 < top_k < len(x):
        left = left[x >= np.sort(x)[-top_k]]
    if record["top_p"] >= 1 and record["min_p"] <= 0:
        return left
    mass = masses(x[left], x.max())
    if record["top_p"] < 1:
        order = np.argsort(x[left], kind="stable")
        limit = np.uint64((1.0 - record["top_p"]) * np.float64(mass.sum()))
        stays = mass[order].cumsum() > limit
        stays[-1] = True
        chosen = np.sort(order[stays])
        left, mass = left[chosen], mass[chosen]
    return left[mass >= np.uint64(np.ceil(record["min_p"] * MASS))]


def masses(x: F32, best: np.float32) -> Masses:
    """e^(x - best) in units of 1 / MASS, rounded down; 0 below e^-40."""
    d = x.astype(np.float64) - np.float64(best)
    return np.where(d > -40, exp(np.maximum(d, -40)) * MASS, 0).astype(np.uint64)


def exp(x: F64) -> F64:
    """e^x for x from -40 to 0: a Taylor polynomial of the rest after whole multiples of ln 2."""
    k = np.floor(x * 1.44269504088896340736 + 0.5)
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    factorials = (39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2, 1, 1)
    y = np.full_like(x, 1.0 / 479001600)
    for factorial in factorials:
        y = y * r + 1.0 / factorial
    return y * np.ldexp(1.0, k.astype(np.int32))


def log(x: F64) -> F64:
    """The natural logarithm of normal positive numbers, as in FreeBSD's e_log.c."""
    bits = x.view(np.uint64)
    up = bits + np.uint64(0x95F62 << 32)
    k = (up >> np.uint64(52)).astype(np.float64) - 1023
    f = ((up & np.uint64((1 << 52) - 1)) + np.uint64(0x3FE6A09E << 32)).view(np.float64) - 1.0
    half, s = 0.5 * (f * f), f / (2.0 + f)
    z = s * s
    w = z * z
    odd = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01))
    even = z * (
        6.666666666666735130e-01
        + w * (2.857142874366239149e-01 + w * (1.818357216161805012e-01 + w * 1.479819860510658591e-01))
    )
    rest = s * (half + (even + odd)) + k * LN2_LOW
    y: F64 = k * LN2_HIGH - ((half - rest) - f)
    return y


def gumbel(word: Words) -> F64:
    """Gumbel noise of random words: -log(-log u), u the middle of a word's interval of (0, 1)."""
    return -log(-log((word.astype(np.float64) + 0.5) * 2.0**-32))


def words(seed: int, position: int, count: int) -> Words:
    """A random word for each of the first `count` ids: id i has word i mod 4 of the group i / 4.

    Philox 4x32-10 (Salmon et al. 2011), with the counter (position, group, 0, 0) and the seed as its key.
    """
    groups = np.arange(-(-count // 4), dtype=np.uint64)
    a, b = np.full_like(groups, position & 0xFFFFFFFF), groups
    c, d = np.zeros_like(groups), np.zeros_like(groups)
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    for i in range(10):
        p, q = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        k0 = np.uint64((seed + i * 0x9E3779B9) & 0xFFFFFFFF)
        k1 = np.uint64(((seed >> 32) + i * 0xBB67AE85) & 0xFFFFFFFF)
        a, b, c, d = (q >> high) ^ b ^ k0, q & low, (p >> high) ^ d ^ k1, p & low
    return np.stack([a, b, c, d], axis=1).astype(np.uint32).reshape(-1)[:count]
