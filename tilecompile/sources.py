"""What is compiled: a named configuration or a checkpoint folder, as configuration, weights and tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Container, Mapping
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
from tilecompile.options import DRAFTS, KEEP, PREFILL, CompileOptions, Settings
from tilecompile.runtime.format import BODY_TOKENS, MAX_TOKENS
from tilecompile.runtime.weight_formats import FORMATS

DEFAULT_MAX_SEQ_LEN = 4096

QUANTISED = ("fp8", "nvfp4")
"""Forms of stored matrices whose numbers have scales."""

KEPT = ("fp8",)
"""Those of them that are kept: quantised anew, a block has the same scale if its largest number is the format's."""

STATED = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
"""Forms of stored matrices by a configuration's name of the type."""


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
        weights = Checkpoint(folder, options.experts_from, finite=not options.allow_nan)
        config, origin = weights.config, "checkpoint"
        if options.experts_from is not None:
            origin = f"checkpoint, experts of {options.experts_from.resolve().name}"
    else:
        config, origin = config_of(options.model), "none"
    config = _chosen(config, options)
    storage, steps = storage_of(config, weights, options, settings), steps_of(config, options, settings)
    notes = (*weights.notes, *_conversions(weights, storage)) if weights else ()
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


def _chosen(config: ModelConfig, options: CompileOptions) -> ModelConfig:
    """The configuration with the fields that the options set. InputError for a model that hasn't such a field."""
    values = {name: value for name in ("latent_norm_eps",) if (value := getattr(options, name)) is not None}
    for name, value in values.items():
        if name not in spec_of(config).chosen:
            raise InputError(f"--{name.replace('_', '-')} is {value}, and {options.model} has no such norms")
    return replace(config, **values)


def kept_type(config: ModelConfig, weights: Weights[Any] | None, takes: Container[str]) -> str:
    """The weight type that keeps the values as they are stored, as most matrices are.

    Quantised ones that aren't kept, or that the machine doesn't take (`takes`), become bf16, or f32 where it doesn't
    take that either.
    """
    if weights is None or not weights.stored:
        return config.weight_type
    most = max(weights.stored, key=lambda kind: weights.stored[kind])
    if most not in QUANTISED:
        return "bf16" if most == "bf16" else "f32"
    return next(name for name in (*(most,) * (most in KEPT), "bf16", "f32") if name in takes or name == "f32")


def _conversions(weights: Weights[Any], storage: Storage) -> tuple[str, ...]:
    """Notes on weights that are stored otherwise than the engine has them, or than their configuration says."""
    numbers, notes = sum(weights.stored.values()), []
    holds = {"f32": ("f32", "bf16", "f16"), "bf16": ("bf16",)}.get(storage.weights)
    for kind, count in weights.stored.items():
        if holds is not None and kind not in holds:
            becomes = "read as" if storage.weights == "f32" else "rounded to"
            share = "" if count == numbers else f"{count} of {numbers} numbers of "
            notes.append(f"{weights.source}: {share}matrices are stored in {kind} and {becomes} {storage.weights}")
    stated, most = str(weights.states_type), max(weights.stored, key=weights.stored.__getitem__, default=None)
    if stated in STATED and most in STATED.values() and STATED[stated] != most:
        notes.append(f"{weights.source}: config.json says {stated}, and most matrices are stored in {most}")
    return tuple(notes)


def storage_of(
    config: ModelConfig, model_weights: Weights[Any] | None, options: CompileOptions, settings: Settings
) -> Storage:
    """How an engine stores a model. InputError for formats that the machine doesn't take, for more positions than the
    model has, and for a context of more than the engine has."""
    takes = settings.machine.weight_types
    weights = kept_type(config, model_weights, takes) if options.weights in (None, KEEP) else options.weights
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
