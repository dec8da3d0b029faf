"""transformers' model of a configuration, on the weights that an engine was compiled from."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tilecompile.errors import InputError
from tilecompile.models.checkpoint import Checkpoint
from tilecompile.models.drawn import DrawnWeights
from tilecompile.models.registry import read_config
from tilecompile.models.spec import PeerModel
from tilecompile.models.weights import Weights

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def open_weights(job: dict[str, Any]) -> Weights[Any]:
    """The weights of a job (`peers.weights_job`). InputError if they can't be read."""
    config = read_config(job["config"])
    if "folder" not in job:
        return DrawnWeights(config, job["seed"])
    weights = Checkpoint(job["folder"])
    chosen = {field: getattr(config, field) for field in weights.spec.chosen}
    weights.config = dataclasses.replace(weights.config, **chosen)
    return weights


def build(weights: Weights[Any], stored: torch.dtype, dtype: torch.dtype, device: str = "cpu") -> PreTrainedModel:
    """The model in evaluation mode on a device, computing in `dtype`, on weights as the engine has them.

    The engine stores matrices as `stored` (rounded to nearest even), norms and biases as f32; so a model in f32
    computes with the engine's own values. InputError for a model that transformers isn't used for.
    """
    if weights.spec.peer is None:
        raise InputError(f"peers run transformers' model, and none is known for {weights.spec.architecture}")
    peer = weights.spec.peer()
    with torch.device("meta"):
        model: PreTrainedModel = peer.make(weights.config)
    torch.nn.Module.to(model, dtype)
    model.to_empty(device=device).train(False).requires_grad_(False)
    peer.prepare(model, weights.config)
    model.set_experts_implementation("batched_mm")  # the default, grouped_mm, takes multiples of 16 bytes only
    fill(model, peer, weights, stored)
    return model


def fill(model: PreTrainedModel, peer: PeerModel[Any], weights: Weights[Any], stored: torch.dtype) -> None:
    """Writes the weights into a model's parameters, in the parameters' dtypes."""

    def read(name: str) -> Tensor:
        matrix = len(weights.parameters[name].shape) > 1
        return weights.full(name, stored if matrix else torch.float32)

    targets: dict[str, Tensor] = dict(model.named_parameters())
    targets |= {n: b for n, b in model.named_buffers() if n.endswith(peer.buffers)}
    for name, target in targets.items():
        target.copy_(peer.value(name, read))


def need_memory(job: dict[str, Any], copies: float) -> None:
    """InputError unless the machine has room for `copies` of the model's weights in f32."""
    from tilecompile.runtime.machine import free_memory

    want = int(copies * 4 * read_config(job["config"]).figures.parameters)
    free = free_memory()
    if free is not None and want > free:
        raise InputError(f"the model needs about {want} bytes of memory in f32, the machine has {free} free")


def need_gpu_memory(job: dict[str, Any]) -> None:
    """InputError unless the GPU has room for the model's weights in bf16, and a tenth more for what steps take."""
    want = int(1.1 * 2 * read_config(job["config"]).figures.parameters)
    free, _ = torch.cuda.mem_get_info()
    if want > free:
        raise InputError(f"the model needs about {want} bytes of GPU memory in bf16, the GPU has {free} free")


def versions() -> dict[str, str]:
    """Versions of the packages that compute."""
    import transformers

    return {"torch": str(torch.__version__), "transformers": str(transformers.__version__)}
