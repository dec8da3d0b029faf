"""What is compiled: a named configuration or a checkpoint folder, as configuration, weights and tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from tilecompile.errors import InputError
from tilecompile.models.chat import read_chat, unparsable
from tilecompile.models.checkpoint import Checkpoint
from tilecompile.models.drawn import DrawnWeights
from tilecompile.models.generation import NOTHING_STATED, Generation, read_generation
from tilecompile.models.registry import NAMED, config_of, spec_of
from tilecompile.models.spec import ModelConfig, StepProgram, Steps, Storage
from tilecompile.models.tokenizer import read_tokenizer
from tilecompile.models.weights import Weights
from tilecompile.options import DRAFTS, PREFILL, CompileOptions, Settings
from tilecompile.runtime.format import BODY_TOKENS, MAX_TOKENS
from tilecompile.runtime.weight_formats import FORMATS

DEFAULT_MAX_SEQ_LEN = 4096


@dataclass(frozen=True)
class ModelSource:
    """A model to compile: its name, its configuration, how the engine stores it and the sizes of its steps; its weights
    (None with --no-weights), their origin in words, its tokenizer, its chat templates (see `runtime/chat.py`), how its
    makers recommend to sample, what the sizes of steps were chosen by (None: not chosen), notes for the user."""

    name: str
    config: ModelConfig
    storage: Storage
    steps: Steps
    weights: Weights[Any] | None
    origin: str
    tokenizer: Path | None = None
    chat: dict[str, Any] | None = None
    generation: Generation = NOTHING_STATED
    estimated: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def programs(self) -> tuple[StepProgram[Any], ...]:
        """The step programs of the model, the one that decodes first."""
        return spec_of(self.config).programs(self.config, self.steps)


def open_model(options: CompileOptions, settings: Settings) -> ModelSource:
    """Opens the model that the options name. InputError where it is wrong or can't be stored as asked."""
    folder = None if options.model in NAMED else Path(options.model)
    weights: Weights[Any] | None = None
    if folder is not None and options.seed is None and not options.no_weights:
        weights = Checkpoint(folder)
        config, origin = weights.config, "checkpoint"
    else:
        config, origin = config_of(options.model), "none"
    storage, steps = storage_of(config, options, settings), steps_of(config, options, settings)
    notes = weights.notes if weights else ()
    if weights is None and not options.no_weights:
        seed = options.seed or 0
        weights, origin = DrawnWeights(config, seed), f"seed {seed}"
        if options.seed is None:
            notes = (f"{options.model} has no weights of its own: they are drawn from seed 0 (--seed)",)
    if weights is not None:
        _check_disk(weights, storage, options.output)
    name = options.model if folder is None else folder.resolve().name
    if folder is None:
        return ModelSource(name, config, storage, steps, weights, origin, notes=notes)
    tokenizer, found = read_tokenizer(folder, config.vocab_size)
    chat = read_chat(folder) if tokenizer else None
    generation = read_generation(folder, config.vocab_size)
    notes += (*found, *(unparsable(chat) if chat else ()))
    if not (*config.eos_token_id, *generation.stops):
        notes += (f"{folder}: no ids that end a text (eos_token_id) are stated: only a request's own stops end it",)
    return ModelSource(name, config, storage, steps, weights, origin, tokenizer, chat, generation, notes=notes)


def storage_of(config: ModelConfig, options: CompileOptions, settings: Settings) -> Storage:
    """How an engine stores a model. InputError for formats that the machine doesn't take, for more positions than the
    model has, and for a context of more than the engine has."""
    weights, takes = options.weights or config.weight_type, settings.machine.weight_types
    if weights not in takes:
        raise InputError(f"weights are {weights}, and machine {settings.machine.name} takes {', '.join(takes)}")
    limit = config.max_position_embeddings
    if options.max_seq_len is not None and options.max_seq_len > limit:
        raise InputError(f"--max-seq-len is {options.max_seq_len}, the model's positions end at {limit}")
    max_seq_len = options.max_seq_len or min(limit, DEFAULT_MAX_SEQ_LEN)
    if settings.context is not None and settings.context > max_seq_len:
        raise InputError(f"--context is {settings.context}, the engine holds {max_seq_len} positions")
    head = options.draft_head
    if head is not None and head not in takes:
        raise InputError(f"--draft-head is {head}, and machine {settings.machine.name} takes {', '.join(takes)}")
    storage = Storage(max_seq_len, settings.cache, weights)
    return storage if head == storage.exact else replace(storage, draft_head=head)


def steps_of(config: ModelConfig, options: CompileOptions, settings: Settings) -> Steps:
    """The sizes of an engine's steps, those of a machine without costs where none are given. InputError for drafts of a
    model that makes none, and for their head where none are made."""
    can = spec_of(config).drafts(config)
    if settings.drafts and not can:
        raise InputError(f"--drafts is {settings.drafts}, and {options.model} has no layer that drafts (MTP)")
    if options.draft_head is not None and not (can and settings.drafts != 0):
        why = "--drafts is 0" if can else f"{options.model} has no layer that drafts (MTP)"
        raise InputError(f"--draft-head is {options.draft_head}, and {why}")
    drafts = settings.drafts if settings.drafts is not None else DRAFTS if can else 0
    prefill = settings.prefill or min(PREFILL, MAX_TOKENS if settings.machine.is_cpu else BODY_TOKENS)
    return Steps(prefill, drafts)


def _check_disk(weights: Weights[Any], storage: Storage, output: Path) -> None:
    """InputError where the disk of the engine hasn't room for the matrices, even without padding and scales."""
    stored = {(w, p.shape[-2:]) for p in weights.parameters.values() if len(p.shape) > 1 for w in p.windows}
    numbers = sum(prod(shape) for _, shape in stored)
    least = numbers * FORMATS[storage.weights].bits // 8
    free = shutil.disk_usage(next(p for p in output.absolute().parents if p.exists())).free
    if least > free:
        raise InputError(f"{output}: weights need {least} bytes or more, the disk has {free} free (see --no-weights)")
