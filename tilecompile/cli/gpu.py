"""The options of commands that load an engine: which GPUs it runs on, and how."""

from __future__ import annotations

from typing import Annotated

import typer

from tilecompile.errors import InputError

Gpus = Annotated[
    str | None, typer.Option("--gpus", metavar="N,N,…", help="GPUs, one a device of the engine.  [default: from 0 on]")
]
OnOneGpu = Annotated[
    bool, typer.Option("--on-one-gpu", help="Run all devices of the engine on one GPU, to test a node's plan.")
]
DrawnWeights = Annotated[
    str | None,
    typer.Option("--weights", metavar="random:SEED", help="On GPUs: draw weights there instead of reading them."),
]


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers with commas between them. InputError that names the option."""
    try:
        return [int(item) for item in text.replace(",", " ").split()]
    except ValueError:
        raise InputError(f"{option} is {text!r}, want whole numbers with commas between them") from None


def gpu_numbers(text: str | None) -> list[int] | None:
    """The numbers of --gpus. InputError if they aren't numbers."""
    return None if text is None else numbers("--gpus", text)
