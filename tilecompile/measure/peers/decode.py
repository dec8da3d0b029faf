"""Decode steps of transformers' model at a chosen context, batch 1, greedy: one setting, timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Setting:
    """How the model runs. `options` are torch.compile's; None: not compiled. `graph`: captured as a CUDA graph."""

    dtype: str
    experts: str = "batched_mm"
    attention: str = "eager"
    cache: str = "static"
    options: dict[str, Any] | None = field(default=None, hash=False)
    graph: bool = False

    def shown(self) -> dict[str, Any]:
        """As JSON values; the options only where there are any."""
        rest: dict[str, Any] = {} if self.options is None else {"compile": self.options or "default"}
        if self.graph:
            rest["cuda_graph"] = True
        return {
            "dtype": self.dtype,
            "experts": self.experts,
            "attention": self.attention,
            "cache": self.cache,
            **rest,
        }

    def __str__(self) -> str:
        parts = [self.dtype, f"{self.experts} experts", f"{self.attention} attention", f"{self.cache} cache"]
        parts += [f"{key}={value}" for key, value in (self.options or {}).items()]
        return ", ".join(parts + ["CUDA graph"] * self.graph)


class Decoder:
    """The model with one setting and a cache of random numbers up to a context.

    Steps go through `contexts` (positions that a step sees, its own included) again and again. A static cache has no
    more positions than they need, since its steps read all of it.
    """

    def __init__(self, model: PreTrainedModel, setting: Setting, contexts: range) -> None:
        self.model, self.setting, self.contexts = model, setting, contexts
        self._before = contexts.start - 1
        self._cache: Any = (
            StaticCache(config=model.config, max_cache_len=contexts.stop - 1)
            if setting.cache == "static"
            else DynamicCache(config=model.config)
        )
        self._device = next(model.parameters()).device
        self._ids = torch.tensor([[1 % model.config.vocab_size]], device=self._device)
        self._choose()
        self._forward(self._ids)  # creates the cache's tensors
        self._filled = [self._fill(layer) for layer in self._cache.layers]
        self.step: Step = self._forward
        if setting.options is not None:
            compiled = torch.compile(self._forward, fullgraph=True, dynamic=False, **_arguments(setting.options))
            # What a captured step returns is overwritten by the next one, which takes it as its input.
            self.step = compiled if self._device.type == "cpu" else lambda ids: compiled(ids).clone()
        elif setting.graph:
            self.step = captured(self._forward, self._ids, self.rewind)

    def _choose(self) -> None:
        """Sets the model to this setting, since several decoders may share the model."""
        self.model.set_experts_implementation(self.setting.experts)
        self.model.set_attn_implementation(self.setting.attention)

    def _forward(self, ids: Tensor) -> Tensor:
        """The next ids [1, 1], given ids [1, 1]."""
        logits: Tensor = self.model(input_ids=ids, past_key_values=self._cache, use_cache=True).logits
        return logits[:, -1].argmax(-1, keepdim=True)

    def _fill(self, layer: Any) -> dict[str, Tensor]:
        """Random numbers for a layer's cache, in place where the cache is static."""
        generator = torch.Generator(self._device).manual_seed(0)
        filled = {}
        for name, dimension in (("keys", -2), ("values", -2), ("indexer_keys", -2)):
            tensor = getattr(layer, name, None)
            if tensor is None:
                continue  # a layer without an indexer of its own
            if self.setting.cache == "static":
                tensor.normal_(generator=generator)
            else:
                shape = list(tensor.shape)
                shape[dimension] = self._before
                filled[name] = torch.empty(shape, dtype=tensor.dtype, device=tensor.device).normal_(generator=generator)
        return filled

    def rewind(self) -> None:
        """Back to the first of the contexts."""
        for layer, filled in zip(self._cache.layers, self._filled, strict=True):
            if self.setting.cache == "static":
                layer.cumulative_length.fill_(self._before)
                if getattr(layer, "is_indexer_initialized", False):
                    layer.indexer_cumulative_length.fill_(self._before)
            for name, tensor in filled.items():
                setattr(layer, name, tensor)

    def round(self, steps: int) -> float:
        """Mean time of `steps` steps from the first context on, in ms."""
        self._choose()
        self.rewind()
        ids = self._ids
        self._finish()
        begin = time.perf_counter()
        for _ in range(steps):
            ids = self.step(ids)
        self._finish()
        return 1e3 * (time.perf_counter() - begin) / steps

    def _finish(self) -> None:
        """Waits until the device has done all its work."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def warm_up(self) -> float:
        """Seconds of the first steps, until two successive ones differ by less than a half; at most eight."""
        begin, last = time.perf_counter(), 0.0
        for _ in range(8):
            now = self.round(1)
            if now > 0.67 * last and now < 1.5 * last:
                break
            last = now
        return time.perf_counter() - begin

    def trial(self) -> float:
        """ms a step, quickly: the best of up to 16 steps in half a second."""
        times: list[float] = []
        end = time.perf_counter() + 0.5
        while len(times) < 2 or (len(times) < 16 and time.perf_counter() < end):
            times.append(self.round(1))
        return min(times)


def captured(forward: Step, ids: Tensor, rewind: Callable[[], None]) -> Step:
    """A step [1, 1] -> [1, 1] as a CUDA graph; its result is valid until the next step. `rewind` makes room for one."""
    side: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what libraries set up at their first calls can't be captured
        for _ in range(3):
            rewind()
            forward(ids)
    torch.cuda.current_stream().wait_stream(side)
    rewind()
    graph, taken = torch.cuda.CUDAGraph(), ids.clone()
    with torch.cuda.graph(graph):
        result = forward(taken)

    def step(given: Tensor) -> Tensor:
        taken.copy_(given)
        graph.replay()
        return result

    return step


def _arguments(options: dict[str, Any]) -> dict[str, Any]:
    """torch.compile's arguments: a `mode`, or inductor's options."""
    rest = {key: value for key, value in options.items() if key != "mode"}
    return {"mode": options["mode"]} if "mode" in options else {"options": rest} if rest else {}
