"""Element types in torch, by their name here."""

from __future__ import annotations

import torch

TORCH_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "i32": torch.int32, "fp8": torch.float8_e4m3fn}
