"""The eager steps against transformers, their export and their parameters."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.checkpoints import ODD, SHARED
from support.reference import draw, load, run_eager, teacher_forced
from tilecompile.models.checkpoint import Checkpoint
from tilecompile.models.glm5.config import Glm5Config
from tilecompile.models.glm5.mtp import MtpStep
from tilecompile.models.glm5.parameters import INV_FREQ, parameters
from tilecompile.models.glm5.step import Glm5Step
from tilecompile.models.registry import NAMED
from tilecompile.models.spec import Steps, Storage


@pytest.mark.parametrize(
    ("overrides", "tokens", "tolerance"),
    [
        ({"index_topk_pattern": "FFSS"}, (1, 3), 3e-5),
        (ODD, (1,), 3e-5),
        ({**ODD, **SHARED, "tie_word_embeddings": True}, (1, 3), 1e-4),
    ],
    ids=["shared", "odd", "odd-shared-tied"],
)
def test_step_agrees_with_transformers(
    overrides: dict[str, Any], tokens: tuple[int, ...], tolerance: float, tmp_path: Path
) -> None:
    """Tight enough to see a wrong epsilon of the latent norms: 4e-5, 5e-5 and 3e-4; rounding makes 0.5 to 2e-5."""
    _, model, ids, want, counted = draw(overrides, 75)
    assert 0.5 < want.std() < 2
    model.save_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    for at_once in tokens:
        got = run_eager(checkpoint.config, checkpoint, ids, at_once)
        difference = (got - want)[:counted].abs().max()
        assert difference < tolerance, f"{at_once} tokens at once: logits differ by {difference:.1e}"


def test_mtp_step_agrees_with_transformers(with_mtp: tuple[Path, Any]) -> None:
    folder, layer = with_mtp
    checkpoint = Checkpoint(folder)
    assert checkpoint.config.mtp_layer == 2
    assert not checkpoint.notes
    extend = MtpStep(checkpoint.config, Storage(64), 2, Steps(2, 1), extend=True)
    draft = MtpStep(checkpoint.config, Storage(64))
    for step in (extend, draft):
        load(step, checkpoint)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, checkpoint.config.vocab_size, (60,), generator=generator, dtype=torch.int32)
    hidden = torch.randn(60, checkpoint.config.hidden_size, generator=generator)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, x.shape[-1:], tensors[f"model.layers.2.{name}.weight"], 1e-5)

    both = torch.cat([norm(tensors["model.embed_tokens.weight"][ids.long()], "enorm"), norm(hidden, "hnorm")], 1)
    want, near = teacher_forced(layer, both @ tensors["model.layers.2.eh_proj.weight"].T)
    assert near is None
    with torch.inference_mode():
        for start in range(0, 60, 2):
            now, position = slice(start, start + 2), torch.tensor([start], dtype=torch.int32)
            extend.model.hidden.copy_(hidden[now])
            logits, following = extend(ids[now], position)
            assert (logits - want[start + 1]).abs().max() < 1e-4
            assert torch.equal(following, logits.argmax(-1).int())
            assert torch.allclose(extend.model.draft_hidden @ tensors["lm_head.weight"].T, logits, atol=1e-5)
        for start in range(60):  # the same layer, a token a step, with the hidden row that it is given as its own
            draft.model.draft_hidden.copy_(hidden[start : start + 1])
            logits, _ = draft(ids[start : start + 1], torch.tensor([start], dtype=torch.int32))
            assert (logits - want[start]).abs().max() < 1e-4
            assert torch.allclose(draft.model.draft_hidden @ tensors["lm_head.weight"].T, logits, atol=1e-5)


def export(config: Glm5Config, tokens: int) -> torch.export.ExportedProgram:
    """Exports the main step on the meta device, as the trace pass does."""
    with torch.device("meta"):
        step = Glm5Step(config, Storage(4096, weights="bf16"), tokens)
        ids = torch.zeros(tokens, dtype=torch.int32)
        return torch.export.export(step, (ids, torch.zeros(1, dtype=torch.int32)), strict=False)


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_step_exports_to_the_ops_it_is_written_in(tokens: int) -> None:
    config = NAMED["glm5-mini"]
    ops = [str(node.target) for node in export(config, tokens).graph.nodes if node.op == "call_function"]
    assert ops.count("tilecompile.mla_attention.default") == 14
    assert ops.count("tilecompile.cache_append.default") == 3 * 14
    plain = {op for op in ops if op.startswith("aten.")}
    assert {"aten.add.Tensor", "aten.mul.Tensor", "aten.silu.default"} <= plain
    views = {"aten.view.default", "aten.reshape.default", "aten.split_with_sizes.default"}
    assert plain <= {"aten.add.Tensor", "aten.mul.Tensor", "aten.silu.default"} | views
    with torch.device("meta"):
        step = MtpStep(config, Storage(4096), tokens, Steps(tokens, tokens - 1), extend=True)
        ids, position = torch.zeros(tokens, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        torch.export.export(step, (ids, position), strict=False)


def test_a_full_size_step_exports() -> None:
    begin = time.perf_counter()
    ops = [str(node.target) for node in export(NAMED["glm-5"], 1).graph.nodes]
    print(f"GLM-5 exported in {time.perf_counter() - begin:.1f} s")
    assert ops.count("tilecompile.mla_attention.default") == 78


@pytest.mark.parametrize("name", ["glm5-mini", "glm-5.2"])
def test_parameter_table_is_the_steps_parameters(name: str) -> None:
    with torch.device("meta"):
        steps = [Glm5Step(NAMED[name], Storage(16)), MtpStep(NAMED[name], Storage(16, draft_head="bf16"), extend=True)]
    shapes = {key: tuple(p.shape) for step in steps for key, p in step.named_parameters()}
    assert shapes == {key: p.shape for key, p in parameters(NAMED[name]).items()}
    assert [key for key, _ in steps[0].named_buffers() if not key.endswith("_cache")] == [INV_FREQ]
