"""The command `tilecompile chat`: a conversation in a terminal, or line by line where there is none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tilecompile.cli.gpu import DrawnWeights, Gpus, OnOneGpu, gpu_numbers
from tilecompile.cli.sampling import sampling_options


@sampling_options
def chat(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="Engine folder.")],
    *,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="Begin with a system message.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Tokens of an answer at most.  [default: a quarter of the context]")
    ] = None,
    sampling: dict[str, Any],
    threads: Annotated[int | None, typer.Option(help="On a CPU: 1 to the engine's workers.")] = None,
    gpus: Gpus = None,
    on_one_gpu: OnOneGpu = False,
    weights: DrawnWeights = None,
) -> None:
    """Talk with a model.

    Answers stream to stdout, everything else goes to stderr. A line that begins with / is a command: /help lists them.
    Ctrl-C stops an answer, Ctrl-D ends the chat. Without a terminal every line of stdin is a message.
    """
    from tilecompile.cli.output import weights_progress
    from tilecompile.cli.talk import Talk, lines, terminal
    from tilecompile.runtime.load import load
    from tilecompile.runtime.sampling import SamplingParams

    params = SamplingParams(**{"max_new_tokens": max_new_tokens, **sampling})
    with load(
        engine, threads, gpus=gpu_numbers(gpus), on_one_gpu=on_one_gpu, weights=weights, progress=weights_progress()
    ) as loaded:
        talk = Talk(loaded, params, system)
        talk.run(terminal() if sys.stdin.isatty() and sys.stdout.isatty() else lines())
