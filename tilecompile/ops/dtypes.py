"""Element types and weight formats in torch, by their name here."""

from __future__ import annotations

import torch

from tilecompile.runtime.weight_formats import FORMATS

ELEMENTS = {"f32": torch.float32, "bf16": torch.bfloat16, "i32": torch.int32}
"""Types of the elements of buffers."""


def torch_dtype(name: str) -> torch.dtype:
    """torch's type of an element type, or the one that stands for a weight format. KeyError for an unknown name."""
    if name in ELEMENTS:
        return ELEMENTS[name]
    dtype: torch.dtype = getattr(torch, FORMATS[name].torch)
    return dtype


def dtype_names() -> dict[torch.dtype, str]:
    """The names by torch's types."""
    return {torch_dtype(name): name for name in (*ELEMENTS, *FORMATS)}
