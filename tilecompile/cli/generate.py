"""The command `tilecompile generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tilecompile.cli.gpu import DrawnWeights, Gpus, OnOneGpu, gpu_numbers, numbers
from tilecompile.errors import InputError

if TYPE_CHECKING:
    from tilecompile.runtime.engine import Engine
    from tilecompile.runtime.generate import TokenStream
    from tilecompile.runtime.loaded import Prompt


def generate(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="Engine folder.")],
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Text to continue.")] = None,
    ids: Annotated[str | None, typer.Option(metavar="N,N,…", help="Token ids to continue, instead of text.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 64,
    threads: Annotated[int | None, typer.Option(help="On a CPU: 1 to the engine's workers.")] = None,
    gpus: Gpus = None,
    on_one_gpu: OnOneGpu = False,
    weights: DrawnWeights = None,
    check_weights: Annotated[bool, typer.Option("--check-weights", help="Check the weight files' hashes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of streaming.")] = False,
) -> None:
    """Generate text with an engine.

    Decoding is greedy and stops at the model's stop ids. Text streams to stdout, everything else goes to stderr.
    """
    from tilecompile.cli.output import note, print_json, timings
    from tilecompile.runtime.load import load

    start = _prompt(prompt, ids)
    with load(
        engine,
        threads,
        check_weights,
        gpus=gpu_numbers(gpus),
        on_one_gpu=on_one_gpu,
        weights=weights,
        progress=_progress if sys.stderr.isatty() else None,
    ) as loaded:
        if not as_json:
            stream = loaded.stream(start, max_new_tokens)
            print_stream(loaded, stream)
            if stream.stats is not None:
                note(timings(loaded, stream.stats))
            return
        out = loaded.generate(start, max_new_tokens)
        print_json(
            {
                "tokens": out.tokens,
                "text": out.text,
                "finish": out.stats.finish,
                "prompt_tokens": out.stats.prompt_tokens,
                "ms_per_step": out.stats.ms_per_step,
                "time_to_first_token_ms": out.stats.time_to_first_token_ms,
                "load_ms": loaded.stats.load_ms,
                "threads": loaded.threads,
                "launches": loaded.stats.launches,
                "steps": loaded.stats.steps,
            }
        )


def _progress(done: int, total: int) -> None:
    """Bytes of weights that have been read, in one line that is overwritten."""
    end = "\n" if done >= total else ""
    print(f"\rloading weights {done / 1e9:.1f} of {total / 1e9:.1f} GB", end=end, file=sys.stderr, flush=True)


def _prompt(prompt: str | None, ids: str | None) -> Prompt:
    """The one of --prompt and --ids that was given."""
    if (prompt is None) == (ids is None):
        raise InputError("give either --prompt TEXT or --ids N,N,…")
    return prompt if prompt is not None else numbers("--ids", str(ids))


def print_stream(engine: Engine, stream: TokenStream) -> None:
    """Text as it comes; ids for an engine without tokenizer."""
    begun = False
    try:
        with stream:
            for token in stream:
                print(stream.piece if engine.text else f"{token} ", end="", flush=True)
                begun = True
    finally:
        if begun:
            print(stream.piece, flush=True)
