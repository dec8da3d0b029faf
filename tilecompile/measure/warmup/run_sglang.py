"""SGLang, from import to the first token; run by `marks.py`.

It captures while it loads, so `loaded` holds both.
"""

from __future__ import annotations

from collections.abc import Callable


def main(mark: Callable[..., None], model: str, ids: str) -> None:
    """Does what a user's program does, without a tokenizer."""
    import sglang

    mark("imported")
    engine = sglang.Engine(model_path=model, skip_tokenizer_init=True)
    mark("loaded")
    prompt = [int(item) for item in ids.split(",")]
    out = engine.generate(input_ids=prompt, sampling_params={"temperature": 0, "max_new_tokens": 1})
    mark("first_token", int(out["output_ids"][0]))
