"""SGLang, from import to the first token: `python -m tilecompile.warmup.run_sglang MODEL IDS`.

It captures while it loads, so `loaded` holds both.
"""

from __future__ import annotations

import sys

from tilecompile.warmup.marks import failed, files, mark


def main(model: str, ids: str) -> None:
    """Does what a user's program does, without a tokenizer."""
    import sglang

    mark("imported")
    engine = sglang.Engine(model_path=model, skip_tokenizer_init=True)
    mark("loaded")
    prompt = [int(item) for item in ids.split(",")]
    out = engine.generate(input_ids=prompt, sampling_params={"temperature": 0, "max_new_tokens": 1})
    mark("first_token", int(out["output_ids"][0]))
    files()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        failed(error)
