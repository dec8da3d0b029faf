"""What is compiled: a named configuration or a checkpoint folder, as configuration, weights and tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tilecompile.errors import InputError
from tilecompile.models.checkpoint import Checkpoint, DrawnWeights, Weights
from tilecompile.models.config import Glm5Config
from tilecompile.models.named import NAMED
from tilecompile.options import CompileOptions
from tilecompile.runtime.folder.manifest import TOKENIZER


@dataclass(frozen=True)
class ModelSource:
    """A model to compile: its name, configuration, weights (None with --no-weights), their origin, its tokenizer."""

    name: str
    config: Glm5Config
    weights: Weights | None
    origin: str
    tokenizer: Path | None
    notes: tuple[str, ...] = ()


def open_model(options: CompileOptions) -> ModelSource:
    """Opens the model that the options name. InputError for anything that is wrong with it."""
    if options.model in NAMED:
        return _drawn(options, options.model, NAMED[options.model], None)
    folder = Path(options.model)
    tokenizer = folder / TOKENIZER
    found = tokenizer if tokenizer.is_file() else None
    name = folder.resolve().name
    if options.seed is not None or options.no_weights:
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder}: no config.json")
        return _drawn(options, name, Glm5Config.from_file(folder / "config.json"), found)
    checkpoint = Checkpoint(folder)
    return ModelSource(name, checkpoint.config, checkpoint, "checkpoint", found, checkpoint.notes)


def _drawn(options: CompileOptions, name: str, config: Glm5Config, tokenizer: Path | None) -> ModelSource:
    if options.no_weights:
        return ModelSource(name, config, None, "none", tokenizer)
    seed = options.seed or 0
    return ModelSource(name, config, DrawnWeights(config, seed), f"seed {seed}", tokenizer)
