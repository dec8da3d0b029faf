"""What a kernel gets of a request's parameters for sampling, and what it gives back besides ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.cpu.memory import address
from tilecompile.runtime.errors import InputError
from tilecompile.runtime.format import BIASED, COUNTED, SAMPLING
from tilecompile.runtime.sampling import SamplingParams

Words = npt.NDArray[np.int32]
Bits = npt.NDArray[np.uint8]
Record = npt.NDArray[np.void]


@dataclass(frozen=True)
class Logprobs:
    """Log-probabilities of a token by the model alone, before penalties, temperature and filters: its own, and those
    of the likeliest ids, the likeliest first."""

    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler:
    """The parameters of one request, resolved, as arrays whose addresses a kernel takes.

    ids: those of the prompt. `most`: tokens that the request can generate at most. InputError for a mask that isn't
    one. The arrays live as long as this object.
    """

    def __init__(self, params: SamplingParams, ids: Words, most: int, vocab: int) -> None:
        self.params, self._vocab = params, vocab
        self.ids = ids
        self.record = sampling_record(params, len(ids))
        self.bias_ids = np.array(list(params.logit_bias), np.int32)
        self.biases = np.array(list(params.logit_bias.values()), np.float32)
        self.allowed = self.mask(()) if params.allowed_tokens else None
        width = 1 + 2 * (params.logprobs or 0)
        self.logprobs: Words | None = None if params.logprobs is None else np.zeros((most, width), np.int32)

    @property
    def seed(self) -> int:
        """Key of the noise."""
        return self.params.seed or 0

    def mask(self, tokens: Sequence[int]) -> Bits:
        """The ids that may follow the generated ones, as bits. InputError unless the request gives such a mask."""
        assert self.params.allowed_tokens is not None
        return mask_bits(self.params.allowed_tokens(tokens), self._vocab, len(tokens))

    def state(self, request: Record) -> None:
        """Writes the addresses to a request."""
        request["sampling"], request["before"] = address(self.record), address(self.ids)
        request["bias_ids"], request["biases"] = address(self.bias_ids), address(self.biases)
        request["bias_count"] = len(self.bias_ids)
        request["allowed"] = 0 if self.allowed is None else address(self.allowed)
        if self.logprobs is not None:
            request["logprobs"], request["logprob_count"] = address(self.logprobs), self.params.logprobs

    def logprobs_of(self, token: int) -> Logprobs | None:
        """The log-probabilities of a token that the kernel has chosen; None if they weren't asked for."""
        if self.logprobs is None:
            return None
        row, n = self.logprobs[token], self.params.logprobs or 0
        values = row.view(np.float32)
        top = zip(row[1 : 1 + n].tolist(), values[1 + n :].tolist(), strict=True)
        return Logprobs(float(values[0]), tuple(top))


def sampling_record(params: SamplingParams, text_begin: int) -> Record:
    """The SAMPLING record of resolved parameters, for a text whose first id is at `text_begin`."""
    record = np.zeros(1, SAMPLING.dtype)
    for name in ("seed", "top_p", "min_p", "temperature", "top_k"):
        record[name] = getattr(params, name)
    for name in ("repetition", "presence", "frequency"):
        record[name] = getattr(params, f"{name}_penalty")
    counts = params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty
    biases = params.logit_bias or params.allowed_tokens
    record["flags"] = (COUNTED if counts else 0) | (BIASED if biases else 0)
    record["text_begin"], record["stop_begin"] = text_begin, min(text_begin + params.min_tokens, 0xFFFFFFFF)
    record["stop_count"] = len(params.stop_token_ids)
    record["stops"][0, : len(params.stop_token_ids)] = params.stop_token_ids
    return record


def mask_bits(value: Any, vocab: int, generated: int) -> Bits:
    """The bits of a mask: bit i % 8 of byte i / 8 for id i. InputError unless it is one (`NextMask`) with an id."""
    found = np.asarray(value)
    size = -(-vocab // 8)
    if found.dtype == np.bool_ and found.shape == (vocab,):
        bits = np.packbits(found, bitorder="little")
    elif found.dtype == np.uint8 and found.shape == (size,):
        bits = found.copy()
        if vocab % 8:
            bits[-1] &= (1 << vocab % 8) - 1
    else:
        what = f"{found.dtype} {list(found.shape)}"
        raise InputError(f"allowed_tokens gave {what} after {generated} tokens, want bool [{vocab}] or uint8 [{size}]")
    if not bits.any():
        raise InputError(f"allowed_tokens allows no token after {generated} tokens")
    return bits
