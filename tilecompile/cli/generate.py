"""The command `tilecompile generate`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilecompile.cli.gpu import DrawnWeights, Gpus, OnOneGpu, gpu_numbers, numbers
from tilecompile.cli.sampling import sampling_options
from tilecompile.errors import InputError

if TYPE_CHECKING:
    from tilecompile.runtime.engine import Engine
    from tilecompile.runtime.generate import Output, TokenStream
    from tilecompile.runtime.loaded import Prompt
    from tilecompile.runtime.sampling import SamplingParams


@sampling_options
def generate(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="Engine folder.")],
    *,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Text to continue.")] = None,
    prompt_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="File with the text, without its last line break; -: stdin.")
    ] = None,
    ids: Annotated[str | None, typer.Option(metavar="N,N,…", help="Token ids to continue, instead of text.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="The text is a message; the model answers it.")] = False,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message before it.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 64,
    sampling: dict[str, Any],
    threads: Annotated[int | None, typer.Option(help="On a CPU: 1 to the engine's workers.")] = None,
    gpus: Gpus = None,
    on_one_gpu: OnOneGpu = False,
    weights: DrawnWeights = None,
    check_weights: Annotated[bool, typer.Option("--check-weights", help="Check the weight files' hashes.")] = False,
    logprobs: Annotated[
        int | None, typer.Option(metavar="N", help="With --json: log-probabilities of tokens and of the N likeliest.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of streaming.")] = False,
) -> None:
    """Generate text with an engine.

    Without options decoding is the model's default. Text streams to stdout, everything else goes to stderr.
    """
    from tilecompile.cli.output import note, print_json, timings, weights_progress
    from tilecompile.runtime.load import load
    from tilecompile.runtime.sampling import SamplingParams

    params = SamplingParams(**{"max_new_tokens": max_new_tokens, "logprobs": logprobs, **sampling})
    if logprobs is not None and not as_json:
        raise InputError("--logprobs is shown with --json only")
    start = _prompt(prompt, prompt_file, ids)
    messages = _messages(start, chat, system)
    with load(
        engine,
        threads,
        check_weights,
        gpus=gpu_numbers(gpus),
        on_one_gpu=on_one_gpu,
        weights=weights,
        progress=weights_progress(),
    ) as loaded:
        if messages:
            start = loaded.chat_prompt(messages)
        if as_json:
            about = {"prompt": start, "messages": messages or None}
            print_json({**_stated(loaded, loaded.generate(start, params), params), **about})
            return
        stream = loaded.stream(start, params)
        print_stream(loaded, stream)
        if stream.stats is not None:
            note(timings(loaded, stream.stats))


def _stated(engine: Engine, out: Output, params: SamplingParams) -> dict[str, Any]:
    """What --json prints: the output, its figures, the parameters as they were given, and the engine's counts."""
    about = asdict(out)
    return {
        **about.pop("stats"),
        **about,
        "parameters": {name: value for name, value in asdict(params).items() if name != "allowed_tokens"},
        "load_ms": engine.stats.load_ms,
        "threads": engine.threads,
        "launches": engine.stats.launches,
    }


def _prompt(prompt: str | None, file: str | None, ids: str | None) -> Prompt:
    """The one of --prompt, --prompt-file and --ids that was given."""
    if sum(given is not None for given in (prompt, file, ids)) != 1:
        raise InputError("give either --prompt TEXT, --prompt-file FILE or --ids N,N,…")
    if prompt is not None:
        return prompt
    return numbers("--ids", str(ids)) if file is None else _text_of(file)


def _text_of(file: str) -> str:
    """The text of a file, or of stdin for "-", without its last line break."""
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return content.decode().removesuffix("\n")
    except OSError as error:
        raise InputError(f"{file}: can't be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is no UTF-8 text: {error.reason} at byte {error.start}") from error


def _messages(start: Prompt, chat: bool, system: str | None) -> list[dict[str, str]]:
    """The messages of a chat with one question; none without --chat."""
    if not chat:
        if system is not None:
            raise InputError("--system is for --chat")
        return []
    if not isinstance(start, str):
        raise InputError("--chat is for text, not for --ids")
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": start}]


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
