"""Decode steps of SGLang, for tilecompile bench.

    tilecompile bench ENGINE --model FOLDER --peer "sglang=python sglang_steps.py {model} {prompt_tokens} {new_tokens}"

A fourth argument is the number of GPUs. To be run with the Python that has SGLang. It uses the offline API
(`Engine.generate`) as documented, and has not been run with SGLang yet.
"""

import json
import sys
import time

ROUNDS = 5


def main(model: str, prompt_tokens: int, new_tokens: int, gpus: int = 1) -> None:
    """Prints the mean time of a step and the time to the first token, in ms: the best of some rounds each."""
    import sglang

    engine = sglang.Engine(
        model_path=model,
        skip_tokenizer_init=True,
        tp_size=gpus,
        context_length=prompt_tokens + new_tokens,
        disable_radix_cache=True,  # the same prompt comes again and again
    )
    prompt = [1 + i % 100 for i in range(prompt_tokens)]

    def ms(tokens: int) -> float:
        sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
        begin = time.perf_counter()
        engine.generate(input_ids=prompt, sampling_params=sampling)
        return 1e3 * (time.perf_counter() - begin)

    ms(new_tokens)  # warm-up
    first, whole = (min(ms(tokens) for _ in range(ROUNDS)) for tokens in (1, new_tokens))
    print(json.dumps({"ms_per_step": (whole - first) / (new_tokens - 1), "first_token_ms": first}), flush=True)
    engine.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
