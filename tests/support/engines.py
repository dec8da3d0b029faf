"""The models whose engines `conftest.py` compiles, and what those engines are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import fake_engine as fake
from support.small import GLM5

TOKENS = 72
TINY_POSITIONS = 16384
ODD: dict[str, Any] = {
    "num_attention_heads": 5,
    "hidden_size": 120,
    "n_routed_experts": 7,
    "num_experts_per_tok": 3,
    "vocab_size": 203,
    "q_lora_rank": 45,
    "kv_lora_rank": 35,
    "qk_nope_head_dim": 18,
    "qk_rope_head_dim": 6,
    "v_head_dim": 22,
    "index_n_heads": 3,
    "index_head_dim": 26,
    "intermediate_size": 133,
    "moe_intermediate_size": 49,
}
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({"num_hidden_layers": 3, "index_topk": 24, "vocab_size": 300}, 4),
    "odd": ({**ODD, "num_hidden_layers": 2, "index_topk": 16}, 2),
    "shared": ({**ODD, "num_hidden_layers": 4, "index_topk_pattern": "FSFS", "index_topk": 40}, 3),
}
"""What differs from `reference.SMALL`, and the number of workers. The text is longer than index_topk in each."""


@dataclass(frozen=True)
class Built:
    """An engine, and a text in which no choice of the model is a near-tie."""

    path: Path
    ids: list[int]


def tiny_model(folder: Path, **overrides: Any) -> Path:
    """A folder with the config.json, tokenizer and chat template of the tiny model, for weights drawn with --seed."""
    folder.mkdir()
    config = {**GLM5, "vocab_size": fake.VOCAB, **overrides}
    (folder / "config.json").write_text(json.dumps(config))
    fake.tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    (folder / "chat_template.jinja").write_text(fake.TEMPLATE)
    return folder
