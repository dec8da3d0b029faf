"""The bytes that a step must read: the formula against a count by hand, and the figure that an engine states."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import damage
from support.small import GLM5, glm5_graphs
from tilecompile.cost.graph_reads import reads
from tilecompile.cost.traffic import stated_reads
from tilecompile.errors import EngineError
from tilecompile.passes.fuse import fuse
from tilecompile.runtime.folder.manifest import read_manifest

MAX_SEQ_LEN = 32


def by_hand(context: int) -> int:
    """Bytes of a decode step of the small GLM-5 (f32): as the model's description has them, tensor by tensor."""
    c = GLM5
    hidden, heads, q_rank, kv_rank = (
        c[k] for k in ("hidden_size", "num_attention_heads", "q_lora_rank", "kv_lora_rank")
    )
    nope, rope, value = (c[k] for k in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    index_heads, index_dim, topk = (c[k] for k in ("index_n_heads", "index_head_dim", "index_topk"))
    attention = q_rank * hidden + q_rank + heads * (nope + rope) * q_rank + (kv_rank + rope) * hidden + kv_rank
    attention += heads * (nope + value) * kv_rank + hidden * heads * value
    indexer = index_heads * index_dim * q_rank + index_dim * hidden + 2 * index_dim + index_heads * hidden
    layer = attention + indexer + 2 * hidden
    dense = 3 * hidden * c["intermediate_size"]
    experts = (c["num_experts_per_tok"] + c["n_shared_experts"]) * 3 * hidden * c["moe_intermediate_size"]
    router = c["n_routed_experts"] * (hidden + 1)
    head = c["vocab_size"] * hidden + hidden
    words = 2 * layer + dense + experts + router + head + hidden + rope // 2  # an embedding row, frequencies
    words += 2 * (kv_rank + rope) * min(context, topk)
    words += 2 * index_dim * context if context > topk else 0
    return 4 * words


def test_reads_are_those_counted_by_hand() -> None:
    read = reads(fuse(glm5_graphs()[0]), MAX_SEQ_LEN)
    for context in (1, 7, 8, 9, 31, 32):
        assert read.at(context) == by_hand(context), context
    assert read.mean(range(7, 10)) == pytest.approx((by_hand(7) + by_hand(8) + by_hand(9)) / 3)


def test_an_engine_states_its_reads(tiny: Path, tmp_path: Path) -> None:
    manifest = read_manifest(tiny)
    program = manifest.program("decode")
    assert stated_reads(manifest).at(manifest.max_seq_len) == program["bytes_per_step"]
    assert stated_reads(manifest, "draft").at(manifest.max_seq_len) == manifest.program("draft")["bytes_per_step"]

    def drop(data: dict) -> None:
        data["programs"][0]["reads"]["caches"][0]["rows"] = "all"

    engine = damage.copy(tiny, tmp_path / "engine")
    damage.edit_manifest(engine, drop)
    with pytest.raises(EngineError, match=r'engine\.json: .*caches\[0\]\.rows is "all", want a whole number'):
        stated_reads(read_manifest(engine))
    damage.edit_manifest(engine, lambda data: data["programs"][0].pop("reads"))
    with pytest.raises(EngineError, match=r"reads of program decode is null, .*; compile the model again"):
        stated_reads(read_manifest(engine))
