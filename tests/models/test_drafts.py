"""Drafts of models whose later drafts share the first one's selection, against steps that are told what to select."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from support.reference import load
from tilecompile.models.checkpoint import Checkpoint
from tilecompile.models.glm5.attention import Selection
from tilecompile.models.glm5.mtp import MtpStep
from tilecompile.models.spec import Steps, Storage


@pytest.mark.parametrize("end", [10, 18, 19, 58])
def test_later_drafts_share_the_selection_of_the_first(with_mtp: tuple[Path, Any], end: int) -> None:
    """The first draft is as without the flag; others read what it selected of `end` tokens, and the positions since.

    Contexts go up to index_topk, 19, across it and beyond.
    """
    checkpoint = Checkpoint(with_mtp[0])
    sharing = dataclasses.replace(checkpoint.config, index_share_for_mtp_iteration=True)
    steps, drafts = Steps(4, 3), 3
    plain, extend = (MtpStep(c, Storage(64), 4, steps, extend=True) for c in (checkpoint.config, sharing))
    own, shared = MtpStep(checkpoint.config, Storage(64), 1, steps), MtpStep(sharing, Storage(64), 1, steps)
    for step in (plain, extend, own, shared):
        load(step, checkpoint)
    generator = torch.Generator().manual_seed(end)
    ids = torch.randint(0, sharing.vocab_size, (end + drafts,), generator=generator, dtype=torch.int32)
    hidden = torch.randn(end, sharing.hidden_size, generator=generator)

    def at(position: int) -> torch.Tensor:
        return torch.tensor([position], dtype=torch.int32)

    with torch.inference_mode():
        for start in range(end % 4, end, 4):
            for step in (plain, extend):
                step.model.hidden.copy_(hidden[start : start + 4])
            first, _ = plain(ids[start : start + 4], at(start))
            assert torch.equal(first, extend(ids[start : start + 4], at(start))[0])
        kept = extend.model.draft_selection[0]
        assert kept[0] == end - 1
        chosen = kept[1:][kept[1:] >= 0]
        assert len(chosen) == min(end, sharing.index_topk)
        for step in (own, shared):
            step.model.draft_hidden.copy_(extend.model.draft_hidden)
            step.layer.self_attn.kv_cache.copy_(extend.layer.self_attn.kv_cache)
        shared.model.draft_selection.copy_(extend.model.draft_selection)
        assert own.layer.self_attn.indexer is not None
        own.layer.self_attn.indexer.forward = lambda cached, asking, latent: Selection(
            torch.cat([chosen, torch.arange(end, int(asking.position) + 1, dtype=torch.int32)])[None],
            torch.tensor([1000], dtype=torch.int32),
        )
        for position in range(end, end + drafts - 1):
            want, _ = own(ids[position : position + 1], at(position))
            got, _ = shared(ids[position : position + 1], at(position))
            assert torch.allclose(got, want, atol=1e-5)
