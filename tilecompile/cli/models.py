"""tilecompile models: what can be compiled."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer


def checkpoint_folder() -> str:
    """What a checkpoint folder is, in words."""
    from tilecompile.models.registry import SPECS

    return (
        f"a folder with a Hugging Face config.json of the architecture {' or '.join(SPECS)}, weights as *.safetensors "
        "(one file, or shards with an index) in f32, bf16, f16, FP8 or NVFP4, and optionally tokenizer.json"
    )


def named_models() -> dict[str, dict[str, Any]]:
    """The named configurations with their main figures."""
    from tilecompile.models.registry import NAMED

    out = {}
    for name, config in NAMED.items():
        out[name] = {
            **asdict(config.figures),
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.max_position_embeddings,
        }
    return out


def count(number: float) -> str:
    """A number of parameters for people."""
    return f"{number / 1e9:.3g}B" if number >= 1e9 else f"{number / 1e6:.3g}M"


def print_models() -> None:
    """What can be compiled, as text on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table("name", "parameters", "read a token", "layers", "hidden", "experts", "context", title_justify="left")
    table.title = "Named configurations (weights are drawn from --seed, or left out with --no-weights)"
    for name, about in named_models().items():
        experts = f"{about['experts_per_token']} of {about['experts']}"
        figures = [str(about[key]) for key in ("layers", "hidden_size")]
        read = count(about["active_parameters"])
        context = str(about["max_position_embeddings"])
        table.add_row(Text(name), count(about["parameters"]), read, *figures, experts, context)
    console.print(table)
    console.print(Text(f"Checkpoint folders: {checkpoint_folder()}."))


def models(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show what can be compiled."""
    from tilecompile.cli.output import print_json

    if as_json:
        print_json({"named": named_models(), "checkpoint_folder": checkpoint_folder()})
    else:
        print_models()
