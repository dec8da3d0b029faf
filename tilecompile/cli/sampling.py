"""The options of commands that generate: every one is a parameter of `SamplingParams`, in a table."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from tilecompile.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """An option: the parameter that it sets, the type that typer reads, and its help."""

    parameter: str
    kind: Any
    help: str
    metavar: str | None = None
    read: Callable[[Any], Any] = lambda value: value


def _draft(text: str) -> int | str:
    """ "auto", or a number; what is neither is refused with all other parameters."""
    return int(text) if text.isdecimal() else text


def _biases(items: list[str]) -> dict[int, float]:
    """Numbers by token id, from ID=NUMBER."""
    out: dict[int, float] = {}
    for item in items:
        name, _, value = item.partition("=")
        try:
            out[int(name)] = float(value)
        except ValueError:
            raise InputError(f"--logit-bias is {item!r}, want ID=NUMBER") from None
    return out


OPTIONS: dict[str, Sampling] = {
    "--temperature": Sampling("temperature", float, "0 takes the likeliest token.  [default: the model's, or 0]"),
    "--top-k": Sampling("top_k", int, "Choose among the K likeliest tokens; 0: all.", "K"),
    "--top-p": Sampling("top_p", float, "Choose among the likeliest tokens that together have probability P.", "P"),
    "--min-p": Sampling("min_p", float, "Choose among tokens with at least P times the highest probability.", "P"),
    "--repetition-penalty": Sampling("repetition_penalty", float, "Divides logits of tokens of prompt and text."),
    "--presence-penalty": Sampling("presence_penalty", float, "Lowers logits of tokens of the text."),
    "--frequency-penalty": Sampling("frequency_penalty", float, "Lowers them once for each occurrence."),
    "--logit-bias": Sampling(
        "logit_bias", list[str], "Adds to a token's logit; can be repeated.", "ID=NUMBER", _biases
    ),
    "--seed": Sampling("seed", int, "The same seed gives the same text.  [default: drawn]"),
    "--stop": Sampling("stop", list[str], "Text that ends the generation and isn't shown; can be repeated.", "TEXT"),
    "--include-stop": Sampling("include_stop", bool, "Show the stop text too."),
    "--stop-id": Sampling(
        "stop_token_ids", list[int], "Token id that does, besides the model's; can be repeated.", "N"
    ),
    "--min-tokens": Sampling("min_tokens", int, "Nothing ends the text before so many tokens.", "N"),
    "--ignore-eos": Sampling("ignore_eos", bool, "Go on at the model's own stop ids."),
    "--draft": Sampling("drafts", str, "Tokens drafted a step; never changes the text.", "auto|N", _draft),
}
"""What `generate` and `chat` take. Options that aren't given leave the parameter's own default."""


def sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of the table, in place of its keyword `sampling`.

    There it gets those that were given: values by parameter.
    """
    names = {option.lstrip("-").replace("-", "_"): option for option in OPTIONS}

    @functools.wraps(command)
    def run(**values: Any) -> None:
        given = {names[name]: values.pop(name) for name in names}
        sampling = {
            OPTIONS[option].parameter: OPTIONS[option].read(value)
            for option, value in given.items()
            if value is not None and value is not False and value != []
        }
        command(**values, sampling=sampling)

    added = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if OPTIONS[option].kind is bool else None,
            annotation=_annotation(option, OPTIONS[option]),
        )
        for name, option in names.items()
    ]
    signature = inspect.signature(command, eval_str=True)
    every = [
        parameter
        for name, own in signature.parameters.items()
        for parameter in (added if name == "sampling" else [own])
    ]
    run.__signature__ = signature.replace(parameters=every)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
    return run


def _annotation(option: str, of: Sampling) -> Any:
    kind = bool if of.kind is bool else of.kind | None
    return Annotated[kind, typer.Option(option, help=of.help, metavar=of.metavar, show_default=False)]
