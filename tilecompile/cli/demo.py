"""tilecompile demo: the tiny checkpoint compiled, and text that it generates."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tilecompile.cli.compile import compile_with_progress
from tilecompile.cli.generate import print_stream
from tilecompile.runtime.errors import EngineError, InputError

DEMO_PROMPT = "And it came to pass"


def demo(
    engine: Annotated[
        Path | None, typer.Option(metavar="ENGINE", help="Keep the engine there, and use it if it exists.")
    ] = None,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="Text to continue.")] = DEMO_PROMPT,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 80,
) -> None:
    """Compile a tiny GLM-5 and generate text.

    The model is the checkpoint in examples/tiny-glm5 of this repository.
    """
    from tilecompile.cli.output import note, timings
    from tilecompile.options import CompileOptions
    from tilecompile.runtime.folder.manifest import read_manifest
    from tilecompile.runtime.load import load

    checkpoint = Path(__file__).resolve().parents[2] / "examples" / "tiny-glm5"
    if not (checkpoint / "config.json").is_file():
        raise InputError(f"{checkpoint}: the tiny checkpoint is not there; demo needs a checkout of the repository")
    with tempfile.TemporaryDirectory(prefix="tilecompile-demo-") as folder:
        path = engine or Path(folder) / "tiny.engine"
        try:
            read_manifest(path)
            note(f"{path}: is there and is used as it is")
        except EngineError:
            note(f"compiling {checkpoint} to {path}")
            compile_with_progress(CompileOptions(model=str(checkpoint), output=path, force=True))
        with load(path) as loaded:
            stream = loaded.stream(prompt, max_new_tokens)
            print(prompt, end="", flush=True)
            print_stream(loaded, stream)
            if stream.stats is not None:
                print(timings(loaded, stream.stats), flush=True)
