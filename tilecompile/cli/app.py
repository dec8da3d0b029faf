"""The command line: every command, registered from a table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from tilecompile import __version__
from tilecompile.cli.bench import bench
from tilecompile.cli.calibrate import calibrate
from tilecompile.cli.chat import chat
from tilecompile.cli.compile import compile_command
from tilecompile.cli.debug import debug
from tilecompile.cli.demo import demo
from tilecompile.cli.generate import generate
from tilecompile.cli.guard import OneLine, guarded
from tilecompile.cli.inspect import inspect
from tilecompile.cli.models import models
from tilecompile.cli.simulate import simulate
from tilecompile.cli.timeline import timeline
from tilecompile.cli.verify import verify
from tilecompile.cli.warmup import warmup

app = typer.Typer(
    name="tilecompile",
    cls=OneLine,
    help="Compile one decode step of GLM-5 into a single resident megakernel, and generate text with it.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def main() -> None:
    """Entry point."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # what the terminal can't show is no reason to fail
    app()


def _version(requested: bool) -> None:
    if requested:
        print(f"tilecompile {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "demo": (demo, "tilecompile demo"),
    "compile": (compile_command, "tilecompile compile examples/tiny-glm5 -o tiny.engine --max-seq-len 1024"),
    "models": (models, "tilecompile models --json"),
    "generate": (generate, 'tilecompile generate tiny.engine --prompt "In the beginning" --max-new-tokens 80'),
    "chat": (chat, "tilecompile chat tiny.engine --temperature 0.7 --max-new-tokens 60"),
    "bench": (bench, "tilecompile bench tiny.engine --context 1024 --ablate --json"),
    "debug": (debug, "tilecompile debug tiny.engine --ids 1,2,3 --compare"),
    "inspect": (inspect, "tilecompile inspect tiny.engine --html tiny.html"),
    "timeline": (timeline, "tilecompile timeline tiny.engine -o trace.json --context 1024"),
    "simulate": (simulate, "tilecompile simulate tiny.engine --machine h200 --context 1024"),
    "calibrate": (calibrate, "tilecompile calibrate tiny.engine mini.engine -o this.toml"),
    "verify": (verify, "tilecompile verify tiny.engine --json"),
    "warmup": (warmup, "tilecompile warmup tiny.engine --against transformers --model examples/tiny-glm5"),
}
"""The commands by name, in the order of the help, with an example of each."""

for _name, (_command, _example) in COMMANDS.items():
    app.command(_name, epilog=f"\b\nExample:\n  {_example}")(guarded(_command))
