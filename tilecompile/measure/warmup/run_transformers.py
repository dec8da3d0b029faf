"""transformers, from import to the first token; run by `marks.py`.

It runs on the CPU or, with the device "cuda", on a GPU. With a last argument `compile` the steps are compiled by
torch.compile. The prompt's first token then goes through the model as it is, which makes the cache's tensors, and the
others one by one through the compiled step: so one compilation is enough, and the first token comes out of compiled
code. With `graph` they are captured as a CUDA graph instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Step = Callable[[torch.Tensor], torch.Tensor]


def main(
    mark: Callable[..., None], model: str, ids: str, threads: str, dtype: str, device: str, how: str = "eager"
) -> None:
    """Does what a user's program does, without a tokenizer."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("torch has no GPU here")
    from transformers import AutoModelForCausalLM, StaticCache

    mark("imported")
    torch.set_num_threads(int(threads))
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype={"bf16": torch.bfloat16, "f32": torch.float32}[dtype])
    loaded.set_experts_implementation("batched_mm")
    torch.nn.Module.to(loaded, device)
    prompt = torch.tensor([[int(item) for item in ids.split(",")]], device=device)
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
            if how == "graph":
                captured = capture(step, first, cache.reset)
                mark("compiled")
                for following in (second, *rest):
                    token = captured(following)
            else:
                step(first)
                compiled = torch.compile(step, fullgraph=True, dynamic=False)
                token = compiled(second)
                mark("compiled")
                for following in rest:
                    token = compiled(following)
            mark("first_token", int(token))


def capture(step: Step, first: torch.Tensor, reset: Callable[[], None]) -> Step:
    """The step after the first one as a CUDA graph; its result is valid until the next one. The first step is done."""
    import torch

    side: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what libraries set up at their first calls can't be captured
        for _ in range(2):
            step(first)
            reset()
        step(first)
    torch.cuda.current_stream().wait_stream(side)
    graph, taken = torch.cuda.CUDAGraph(), first.clone()
    with torch.cuda.graph(graph):
        result = step(taken)

    def replay(token: torch.Tensor) -> torch.Tensor:
        taken.copy_(token)
        graph.replay()
        return result

    return replay
