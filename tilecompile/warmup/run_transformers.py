"""transformers, from import to the first token; run by `marks.py`.

With a fifth argument `compile` the steps are compiled by torch.compile. The prompt's first token then goes through the
model as it is, which makes the cache's tensors, and the others one by one through the compiled step: so one compilation
is enough, and the first token comes out of compiled code.
"""

from __future__ import annotations

from collections.abc import Callable


def main(mark: Callable[..., None], model: str, ids: str, threads: str, dtype: str, how: str = "eager") -> None:
    """Does what a user's program does, without a tokenizer."""
    import torch
    from transformers import GlmMoeDsaForCausalLM, StaticCache

    mark("imported")
    torch.set_num_threads(int(threads))
    loaded = GlmMoeDsaForCausalLM.from_pretrained(model, dtype={"bf16": torch.bfloat16, "f32": torch.float32}[dtype])
    loaded.set_experts_implementation("batched_mm")
    prompt = torch.tensor([[int(item) for item in ids.split(",")]])
    mark("loaded")
    with torch.inference_mode():
        if how == "eager":
            mark("first_token", int(loaded(input_ids=prompt).logits[0, -1].argmax()))
        else:
            cache = StaticCache(config=loaded.config, max_cache_len=64)

            def step(token: torch.Tensor) -> torch.Tensor:
                logits: torch.Tensor = loaded(input_ids=token, past_key_values=cache, use_cache=True).logits
                return logits[:, -1].argmax(-1, keepdim=True)

            first, second, *rest = (prompt[:, i : i + 1] for i in range(prompt.shape[1]))
            step(first)
            compiled = torch.compile(step, fullgraph=True, dynamic=False)
            token = compiled(second)
            mark("compiled")
            for following in rest:
                token = compiled(following)
            mark("first_token", int(token))
