"""What a kernel takes of a request's parameters for sampling, and the tensors through which bodies see it."""

from __future__ import annotations

from tilecompile.runtime.format.record import Field, Record

MAX_LOGPROBS = 20
"""Most ids a token whose log-probabilities a request can ask for."""

MAX_STOP_IDS = 64
"""Most ids that end a request."""

RECOMMENDED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""What a model's makers may recommend for sampling, by the names of `SamplingParams`."""

COUNTED, BIASED = 1, 2
"""`Sampling.flags`: the request has penalties, for which ids are counted; `bias` holds numbers."""

NOT_FINITE_ID, NOTHING_ALLOWED_ID = -1, -2
"""What stands in place of a sampled id where a logit isn't finite, and where no id is allowed."""

SAMPLING = Record(
    "Sampling",
    320,
    (
        Field("seed", "u8", "key of the noise"),
        Field("top_p", "f8", "probability that the likeliest ids which are kept reach; 1: all are kept"),
        Field("min_p", "f8", "least probability of an id that is kept, relative to the likeliest one's; 0: none"),
        Field("temperature", "f4", "divisor of the logits; 0: the likeliest id"),
        Field(
            "repetition", "f4", "penalty of ids that occurred: divisor of positive logits, factor of others; 1: none"
        ),
        Field("presence", "f4", "what is subtracted from the logits of ids that the generated text has"),
        Field("frequency", "f4", "what is subtracted for each of their occurrences"),
        Field("top_k", "u4", "how many of the likeliest ids are kept; 0: all"),
        Field("flags", "u4", "bit 0: COUNTED, bit 1: BIASED"),
        Field("text_begin", "u4", "position of the first generated id, one past the prompt"),
        Field("stop_begin", "u4", "position of the first id that may be a stop id"),
        Field("stop_count", "u4", "entries in `stops`"),
        Field("reserved", "u4", "reserved, zero"),
        Field("stops", "i4", "ids that end the request", MAX_STOP_IDS),
    ),
)

SAMPLING_INPUTS = ("sampling", "bias", "counts")
"""Tensors that a loop writes for bodies that sample, besides a step's ids and position.

`sampling` i32 [SAMPLING_WORDS] is the request's record. `bias` f32 [vocab] is added to the logits; minus infinity
forbids an id. `counts` i32 [vocab] is about the ids before the step's position: twice the occurrences in the generated
text, plus one where the prompt has the id.
"""

SAMPLING_WORDS = SAMPLING.size // 4
"""32-bit words of the record."""
