"""The command line: tilecompile demo, compile, generate, inspect, models, bench, debug, timeline, simulate, calibrate,
verify, warmup."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tilecompile import __version__
from tilecompile.cli_bench import bench
from tilecompile.cli_calibrate import calibrate
from tilecompile.cli_debug import debug
from tilecompile.cli_generate import generate, print_stream
from tilecompile.cli_guard import OneLine, guarded
from tilecompile.cli_inspect import inspect
from tilecompile.cli_simulate import simulate
from tilecompile.cli_timeline import timeline
from tilecompile.cli_verify import verify
from tilecompile.cli_warmup import warmup
from tilecompile.runtime.errors import EngineError, InputError
from tilecompile.schedules import PLACEMENTS, REDUCTIONS

if TYPE_CHECKING:
    from tilecompile.compile import Compiled
    from tilecompile.options import CompileOptions

COMPILER_MODULES = ("torch", "networkx", "safetensors")
DEMO_PROMPT = "And it came to pass"
EXAMPLE = "\b\nExample:\n  "

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


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tilecompile {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command("compile", epilog=EXAMPLE + "tilecompile compile examples/tiny-glm5 -o tiny.engine --max-seq-len 1024")
@guarded
def compile_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint folder or named configuration.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="ENGINE", help="Folder to make.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an engine that exists.")] = False,
    target: Annotated[
        str | None, typer.Option(help="cpu (what this machine has), cpu-avx2, cpu-portable, sm_90a, sm_100a.")
    ] = None,
    machine: Annotated[str | None, typer.Option(metavar="NAME|FILE.toml", help="Sets target and devices.")] = None,
    devices: Annotated[int | None, typer.Option(help="Devices to place the model on.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Workers a device.  [default: the usable cores; a GPU's SMs]")
    ] = None,
    on_one_gpu: Annotated[
        bool, typer.Option("--on-one-gpu", help="Let the devices share one GPU, to test a node's plan.")
    ] = False,
    tokens: Annotated[int, typer.Option(help="Tokens of a step; more than one to look at, not to run, so far.")] = 1,
    granularity: Annotated[int, typer.Option(help="Tasks a worker that an operator is cut into, about.")] = 1,
    placement: Annotated[
        str | None,
        typer.Option(
            help=f"On devices: {', '.join(PLACEMENTS)}.  [default: {PLACEMENTS[0]}, on several devices {PLACEMENTS[1]}]"
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(metavar="N", help="Positions that placement auto is chosen for.  [default: 4096, or all]"),
    ] = None,
    reduction: Annotated[
        str | None, typer.Option(help=f"Sums over devices: {', '.join(REDUCTIONS)}.  [default: by placement]")
    ] = None,
    max_seq_len: Annotated[int | None, typer.Option(help="Positions that the engine can hold.")] = None,
    weights: Annotated[str | None, typer.Option(help="f32, bf16, fp8.  [default: as in the checkpoint]")] = None,
    cache: Annotated[str | None, typer.Option(help="f32 or bf16.  [default: f32 on a CPU, else bf16]")] = None,
    seed: Annotated[int | None, typer.Option(help="Draw the weights from this seed.")] = None,
    no_weights: Annotated[bool, typer.Option("--no-weights", help="Leave the weights out, to look at.")] = False,
    no_kernel: Annotated[bool, typer.Option("--no-kernel", help="Leave the kernel out: only plan and prove.")] = False,
    dump: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the value of every stage there.")] = None,
) -> None:
    """Compile a model into an engine folder."""
    from tilecompile.cli_output import note
    from tilecompile.options import CompileOptions

    options = CompileOptions(
        model=model,
        output=output,
        force=force,
        target=target,
        machine=machine,
        devices=devices,
        workers=workers,
        on_one_gpu=on_one_gpu,
        granularity=granularity,
        tokens=tokens,
        placement=placement,
        context=context,
        reduction=reduction,
        max_seq_len=max_seq_len,
        weights=weights,
        cache=cache,
        seed=seed,
        no_weights=no_weights,
        no_kernel=no_kernel,
        dump=dump,
    )
    compiled = _compile(options)
    decode = compiled.programs[0]
    note(
        f"{output}: compiled {model} in {compiled.seconds:.1f} s; "
        f"a step runs {decode['tasks']} tasks with {decode['events']} events and {decode['edges']} edges, proved in "
        f"{compiled.proof.seconds:.1f} s"
    )


def _compile(options: CompileOptions) -> Compiled:
    from tilecompile.cli_output import StageProgress, note

    options.resolve()
    try:
        from tilecompile.compile import compile_model
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in COMPILER_MODULES:
            raise
        raise InputError(
            f"compiling needs the package {error.name}, which is not installed: pip install 'tilecompile[compile]'"
        ) from error
    with StageProgress() as progress:
        compiled = compile_model(options, progress)
    for text in compiled.notes:
        note(f"note: {text}")
    return compiled


@app.command(epilog=EXAMPLE + "tilecompile models --json")
@guarded
def models(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show what can be compiled."""
    from tilecompile.cli_output import CHECKPOINT, named_models, print_json, print_models

    if as_json:
        print_json({"named": named_models(), "checkpoint_folder": CHECKPOINT})
    else:
        print_models()


@app.command(epilog=EXAMPLE + "tilecompile demo")
@guarded
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
    from tilecompile.cli_output import note, timings
    from tilecompile.options import CompileOptions
    from tilecompile.runtime.load import load
    from tilecompile.runtime.manifest import read_manifest

    checkpoint = Path(__file__).resolve().parent.parent / "examples" / "tiny-glm5"
    if not (checkpoint / "config.json").is_file():
        raise InputError(f"{checkpoint}: the tiny checkpoint is not there; demo needs a checkout of the repository")
    with tempfile.TemporaryDirectory(prefix="tilecompile-demo-") as folder:
        path = engine or Path(folder) / "tiny.engine"
        try:
            read_manifest(path)
            note(f"{path}: is there and is used as it is")
        except EngineError:
            note(f"compiling {checkpoint} to {path}")
            _compile(CompileOptions(model=str(checkpoint), output=path, force=True))
        with load(path) as loaded:
            stream = loaded.stream(prompt, max_new_tokens)
            print(prompt, end="", flush=True)
            print_stream(loaded, stream)
            if stream.stats is not None:
                print(timings(loaded, stream.stats), flush=True)


app.command(epilog=EXAMPLE + 'tilecompile generate tiny.engine --prompt "In the beginning" --max-new-tokens 80')(
    guarded(generate)
)
app.command(epilog=EXAMPLE + "tilecompile bench tiny.engine --context 1024 --ablate --json")(guarded(bench))
app.command(epilog=EXAMPLE + "tilecompile debug tiny.engine --ids 1,2,3 --compare")(guarded(debug))
app.command(epilog=EXAMPLE + "tilecompile inspect tiny.engine --html tiny.html")(guarded(inspect))
app.command(epilog=EXAMPLE + "tilecompile timeline tiny.engine -o trace.json --context 1024")(guarded(timeline))
app.command(epilog=EXAMPLE + "tilecompile simulate tiny.engine --machine h200 --context 1024")(guarded(simulate))
app.command(epilog=EXAMPLE + "tilecompile calibrate tiny.engine mini.engine -o this.toml")(guarded(calibrate))
app.command(epilog=EXAMPLE + "tilecompile verify tiny.engine --json")(guarded(verify))
app.command(epilog=EXAMPLE + "tilecompile warmup tiny.engine --against transformers --model examples/tiny-glm5")(
    guarded(warmup)
)
