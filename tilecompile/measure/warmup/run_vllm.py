"""vLLM, from import to the first token; run by `marks.py`.

It compiles and captures while it loads, so `loaded` holds both.
"""

from __future__ import annotations

from collections.abc import Callable


def main(mark: Callable[..., None], model: str, ids: str) -> None:
    """Does what a user's program does, without a tokenizer."""
    from vllm import LLM, SamplingParams

    mark("imported")
    prompt = {"prompt_token_ids": [int(item) for item in ids.split(",")]}
    engine = LLM(model=model, skip_tokenizer_init=True, max_model_len=64)
    mark("loaded")
    out = engine.generate([prompt], SamplingParams(temperature=0, max_tokens=1, detokenize=False))
    mark("first_token", int(out[0].outputs[0].token_ids[0]))
