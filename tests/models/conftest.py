"""What several tests of models use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.checkpoints import ODD
from support.reference import make_model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small operators gain nothing from threads, and lose much where other processes are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def with_mtp(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint with an MTP layer, and a one-layer transformers model that is this layer."""
    folder = tmp_path_factory.mktemp("mtp")
    sizes = {**ODD, "num_hidden_layers": 2}
    config, model = make_model({**sizes, "num_nextn_predict_layers": 1}, 1)
    _, layer = make_model({**sizes, "num_hidden_layers": 1, "first_k_dense_replace": 0}, 2)
    model.save_pretrained(folder)
    layer.save_pretrained(folder / "layer")
    tensors = load_file(folder / "model.safetensors")
    layer.lm_head.weight.copy_(tensors["lm_head.weight"])
    for name, tensor in load_file(folder / "layer" / "model.safetensors").items():
        if name.startswith("model.layers.0."):
            tensors[name.replace("layers.0.", "layers.2.")] = tensor
    hidden, generator = config["hidden_size"], torch.Generator().manual_seed(3)
    tensors["model.layers.2.shared_head.norm.weight"] = layer.model.norm.weight.clone()
    tensors["model.layers.2.enorm.weight"] = 1 + 0.1 * torch.randn(hidden, generator=generator)
    tensors["model.layers.2.hnorm.weight"] = 1 + 0.1 * torch.randn(hidden, generator=generator)
    eh_proj = torch.randn(hidden, 2 * hidden, generator=generator) * (2 * hidden) ** -0.5
    tensors["model.layers.2.eh_proj.weight"] = eh_proj
    save_file(tensors, folder / "model.safetensors")
    return folder, layer
