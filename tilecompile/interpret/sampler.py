"""What the controller does for bodies that sample: `targets/cpu/sampling.h` in Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.format import COUNTED, SAMPLING, SAMPLING_INPUTS
from tilecompile.runtime.sampler import mask_bits, sampling_record
from tilecompile.runtime.sampling import SamplingParams

Words = npt.NDArray[Any]


@dataclass(frozen=True)
class Tensors:
    """The tensors of SAMPLING_INPUTS, flat; they share the memory of the buffers."""

    sampling: Words
    bias: Words
    counts: Words


class Sampler:
    """The parameters of a request and how far its ids are counted."""

    def __init__(self, tensors: Tensors, params: SamplingParams | None, prompt: Sequence[int]) -> None:
        self._tensors, self._params, self._prompt = tensors, params, prompt
        record = np.zeros(1, SAMPLING.dtype) if params is None else sampling_record(params, len(prompt))
        self._masked = -1  # generated ids when the mask was made
        self._counts = bool(record["flags"][0] & COUNTED)
        tensors.sampling[:] = record.view(np.int32)
        tensors.bias[:] = 0
        tensors.counts[:] = 0

    def before(self, position: int, tokens: Sequence[int]) -> None:
        """Writes what bodies read, for a step whose first id is at `position` after these generated ids."""
        if self._params is None:
            return
        if self._masked != len(tokens):
            self._masked = len(tokens)
            self._write_bias(self._params, tokens)
        if self._counts:
            counts = self._tensors.counts
            counts[:] = 0
            counts[list(self._prompt)] = 1
            np.add.at(counts, list(tokens[: max(0, position - len(self._prompt))]), 2)

    def _write_bias(self, params: SamplingParams, tokens: Sequence[int]) -> None:
        bias = self._tensors.bias
        bias[:] = 0
        bias[list(params.logit_bias)] = list(params.logit_bias.values())
        if params.allowed_tokens is not None:
            bits = mask_bits(params.allowed_tokens(tokens), len(bias), len(tokens))
            bias[np.unpackbits(bits, count=len(bias), bitorder="little") == 0] = -np.inf


def tensors_of(io: dict[str, int], words: Any) -> Tensors | None:
    """The tensors in an engine that samples; `words(buffer)` is a buffer's content."""
    return Tensors(*(words(io[name]) for name in SAMPLING_INPUTS)) if set(SAMPLING_INPUTS) <= io.keys() else None
