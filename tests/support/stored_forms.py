"""Checkpoints in the forms that people have, each with its twin: the same values, computed here, stored as f32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
Form = Callable[[str, Tensor, torch.Generator], tuple[Tensors, Tensor]]
"""A tensor's name and values to the tensors that store it, and their exact value."""

BLOCK = 128


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Factors from 1 to 2: scales needn't be the least ones."""
    return 1 + torch.rand(shape, generator=generator)


def fp8_block(
    name: str, weight: Tensor, generator: torch.Generator, suffix: str = "_scale_inv"
) -> tuple[Tensors, Tensor]:
    rows, cols = weight.shape
    scales = torch.empty(-(-rows // BLOCK), -(-cols // BLOCK))
    numbers, value = torch.empty(rows, cols, dtype=torch.float8_e4m3fn), torch.empty(rows, cols)
    factors = _random(tuple(scales.shape), generator)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            part = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
            scales[i, j] = weight[part].abs().max() / 448 * factors[i, j]
            numbers[part] = (weight[part] / scales[i, j]).to(torch.float8_e4m3fn)
            value[part] = numbers[part].float() * scales[i, j]
    return {name: numbers, f"{name}{suffix}": scales}, value


def fp8_block_other_name(name: str, weight: Tensor, generator: torch.Generator) -> tuple[Tensors, Tensor]:
    return fp8_block(name, weight, generator, "_scale")


def fp8_tensor(name: str, weight: Tensor, generator: torch.Generator) -> tuple[Tensors, Tensor]:
    scale = weight.abs().max() / 448 * _random((), generator)
    numbers = (weight / scale).to(torch.float8_e4m3fn)
    stored = {name: numbers, f"{name}_scale": scale, f"{name.removesuffix('weight')}input_scale": torch.tensor(0.5)}
    return stored, numbers.float() * scale


def _four_bits(weight: Tensor, whole: float) -> tuple[Tensor, Tensor, np.ndarray]:
    """Packed numbers, scales of 16, and numbers × scales in f64, which is exact."""
    rows, cols = weight.shape
    groups = -(-cols // 16)
    padded = np.zeros((rows, groups * 16))
    padded[:, :cols] = weight.numpy()
    blocks = padded.reshape(rows, groups, 16)
    scales = np.maximum(np.abs(blocks).max(2) / 6 / whole, 2**-9).astype(ml_dtypes.float8_e4m3fn)
    numbers = (blocks / whole / scales.astype(np.float64)[..., None]).astype(ml_dtypes.float4_e2m1fn)
    exact = (numbers.astype(np.float64) * scales.astype(np.float64)[..., None]).reshape(rows, -1)[:, :cols]
    codes = numbers.view(np.uint8).reshape(rows, -1)[:, :cols] & 15
    codes = np.pad(codes, ((0, 0), (0, cols % 2)))
    packed = codes[:, ::2] | codes[:, 1::2] << 4
    return torch.from_numpy(packed.copy()), torch.from_numpy(scales.view(np.uint8)).view(torch.float8_e4m3fn), exact


def nvfp4(name: str, weight: Tensor, generator: torch.Generator) -> tuple[Tensors, Tensor]:
    """As ModelOpt writes it."""
    whole = (weight.abs().max() / 6 / 448 * _random((), generator)).float()
    packed, scales, exact = _four_bits(weight, float(whole))
    stem = name.removesuffix("weight")
    stored = {name: packed, f"{name}_scale": scales, f"{name}_scale_2": whole, f"{stem}input_scale": torch.tensor(2.0)}
    return stored, torch.from_numpy((exact * float(whole)).astype(np.float32))


def nvfp4_packed(name: str, weight: Tensor, generator: torch.Generator) -> tuple[Tensors, Tensor]:
    """As compressed-tensors writes it: values are divided by the tensor's scale."""
    whole = (6 * 448 / weight.abs().max() / _random((), generator)).float()
    packed, scales, exact = _four_bits(weight, 1 / float(whole))
    stem = name.removesuffix("weight")
    stored = {f"{name}_packed": packed, f"{name}_scale": scales, f"{name}_global_scale": whole[None]}
    stored[f"{stem}input_global_scale"] = torch.tensor([3.0])
    return stored, torch.from_numpy((exact / float(whole)).astype(np.float32))


FORMS: dict[str, Form] = {
    "fp8 blocks": fp8_block,
    "fp8 blocks, another name": fp8_block_other_name,
    "fp8 tensors": fp8_tensor,
    "nvfp4": nvfp4,
    "nvfp4 packed": nvfp4_packed,
}


def quantisable(name: str, tensor: Tensor) -> bool:
    """What releases quantise: projections, not the embedding, the head, and the router."""
    kept = ("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight", "eh_proj.weight", "weights_proj.weight")
    return tensor.dim() == 2 and not name.endswith(kept)


def write(
    source: Path, folder: Path, form_of: Callable[[str], Form | None], seed: int, **fields: Any
) -> tuple[Path, Path]:
    """The checkpoint of a folder with its projections in other forms, and its twin. Fields of config.json change."""
    generator = torch.Generator().manual_seed(seed)
    stored: Tensors = {}
    plain: Tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        form = form_of(name) if quantisable(name, tensor) else None
        parts, value = ({name: tensor}, tensor) if form is None else form(name, tensor.float(), generator)
        stored |= parts
        plain[name] = value
    for name, tensors in (("stored", stored), ("twin", plain)):
        shutil.copytree(source, folder / name)
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / name / "model.safetensors")
    path = folder / "stored" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder / "stored", folder / "twin"
