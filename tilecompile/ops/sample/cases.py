"""Random test cases of sample."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from tilecompile.ir.node import OpNode, View
from tilecompile.ops.testing import Case
from tilecompile.runtime.format import BIASED, COUNTED, MAX_STOP_IDS, SAMPLING, SAMPLING_WORDS

FILTERS: tuple[dict[str, float], ...] = (
    {},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.02},
    {"top_k": 1, "top_p": 1e-9},
)
"""What leaves ids out: nothing, each by itself, all together, all but one id."""


def cases(generator: torch.Generator) -> Iterator[Case]:
    """Greedy and drawn, every filter, with and without ties, penalties, bias, forbidden ids; what can't be sampled."""
    shapes = ((1, 1, 64, 0), (3, 3, 37, 0), (5, 1, 130, 1), (2, 2, 2503, 0), (1, 1, 1, 1))
    for tokens, rows, vocab, shift in shapes:
        for i, filters in enumerate(FILTERS):
            shape, plain = (tokens, rows, vocab, shift), {**filters, "temperature": (0.0, 0.7, 1.0)[i % 3]}
            yield make_case(generator, shape, plain, i % 2 > 0)
            yield make_case(generator, shape, plain | PENALTIES | {"temperature": 1.3}, i % 2 == 0)
        yield make_case(generator, (tokens, rows, vocab, shift), {"temperature": 1.0}, False)
    yield _last_words(generator)
    for value in (torch.nan, torch.inf, -torch.inf):
        spoilt = make_case(generator, (3, 3, 37, 0), {"temperature": 1.0}, False)
        spoilt.tensors["x"][1, 20] = value
        yield spoilt
    forbidden = make_case(generator, (2, 2, 37, 0), {"temperature": 1.0, **PENALTIES}, False)
    forbidden.tensors["bias"].fill_(-torch.inf)
    yield forbidden


PENALTIES = {"repetition": 1.3, "presence": 0.4, "frequency": 0.3, "flags": COUNTED | BIASED, "stop_count": 3}


def _last_words(generator: torch.Generator) -> Case:
    """As many stop ids as there can be: the last is the likeliest id, and the next one the vocabulary's last."""
    case = make_case(generator, (1, 1, 70, 0), {**PENALTIES, "stop_count": MAX_STOP_IDS, "temperature": 0}, False)
    record = case.tensors["sampling"].numpy().view(SAMPLING.dtype)
    record["stops"], record["stop_begin"] = np.arange(MAX_STOP_IDS), 1000
    case.tensors["bias"].zero_()
    case.tensors["counts"][-1] = 0
    case.tensors["x"][0, MAX_STOP_IDS - 1], case.tensors["x"][0, -1] = 30, 20
    return case


def make_case(g: torch.Generator, shape: tuple[int, int, int, int], values: dict[str, float], ties: bool) -> Case:
    """A case of (tokens, rows of logits, vocabulary, shift), with these values in the record; `ties`: equal logits."""
    tokens, rows, vocab, shift = shape
    position = 40
    record = np.zeros(1, SAMPLING.dtype)
    for name, value in ({"top_p": 1.0, "repetition": 1.0} | values).items():
        record[name] = value
    record["seed"] = int(torch.randint(1 << 62, (), generator=g)) * 3
    record["text_begin"], record["stop_begin"] = position + shift + 1, position + shift + 1 + tokens // 2
    record["stops"][0, :3] = torch.randint(vocab, (3,), generator=g).numpy()
    logits = 3 * torch.randn(rows, vocab, generator=g)
    bias = torch.where(torch.rand(vocab, generator=g) < 0.2, torch.randn(vocab, generator=g), 0.0)
    if vocab > 1:
        bias[torch.randint(vocab, (vocab // 9,), generator=g)] = -torch.inf
    counts = torch.randint(9, (vocab,), generator=g, dtype=torch.int32)
    views = (
        View.of("x", (rows, vocab), "f32"),
        View.of("ids", (tokens,), "i32"),
        View.of("position", (1,), "i32"),
        View.of("sampling", (SAMPLING_WORDS,), "i32"),
        View.of("bias", (vocab,), "f32"),
        View.of("counts", (vocab,), "i32"),
    )
    node = OpNode("sample", "sample", views, (), (View.of("y", (rows,), "i32"),), {"shift": shift})
    tensors = {
        "x": logits.round() if ties else logits,
        "ids": torch.randint(min(vocab, 5), (tokens,), generator=g, dtype=torch.int32),
        "position": torch.tensor([position], dtype=torch.int32),
        "sampling": torch.from_numpy(record.view(np.int32).copy()),
        "bias": bias,
        "counts": torch.where(counts > 4, 0, counts),
    }
    return Case(node, tensors, 0)
