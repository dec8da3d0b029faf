"""Decode steps of vLLM, for tilecompile bench.

    tilecompile bench ENGINE --model FOLDER --peer "vllm=python vllm_steps.py {model} {prompt_tokens} {new_tokens}"

A fourth argument is the number of GPUs. To be run with the Python that has vLLM. It uses the offline API
(`LLM.generate`) as documented, and has not been run with vLLM yet.
"""

import json
import sys
import time

ROUNDS = 5


def main(model: str, prompt_tokens: int, new_tokens: int, gpus: int = 1) -> None:
    """Prints the mean time of a step and the time to the first token, in ms: the best of some rounds each."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model,
        skip_tokenizer_init=True,
        tensor_parallel_size=gpus,
        max_model_len=prompt_tokens + new_tokens,
        enable_prefix_caching=False,  # the same prompt comes again and again
    )
    prompt = {"prompt_token_ids": [1 + i % 100 for i in range(prompt_tokens)]}

    def ms(tokens: int) -> float:
        sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        begin = time.perf_counter()
        llm.generate([prompt], sampling, use_tqdm=False)
        return 1e3 * (time.perf_counter() - begin)

    ms(new_tokens)  # warm-up
    first, whole = (min(ms(tokens) for _ in range(ROUNDS)) for tokens in (1, new_tokens))
    print(json.dumps({"ms_per_step": (whole - first) / (new_tokens - 1), "first_token_ms": first}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
