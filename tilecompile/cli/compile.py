"""tilecompile compile: a model to an engine folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tilecompile.runtime.errors import InputError
from tilecompile.schedules import PLACEMENTS, REDUCTIONS

if TYPE_CHECKING:
    from tilecompile.compile import Compiled
    from tilecompile.options import CompileOptions

COMPILER_MODULES = ("torch", "networkx", "safetensors")


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
    prefill: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Tokens of a prompt that a step takes.  [default: by the machine's costs, or 32]"
        ),
    ] = None,
    drafts: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Most tokens to draft in a round, 0 to 7.  [default: by the machine's costs, or 3]"
        ),
    ] = None,
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
    weights: Annotated[
        str | None, typer.Option(help="f32, bf16, fp8, nvfp4, or keep: as in the checkpoint.  [default: keep]")
    ] = None,
    draft_head: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="Format of a copy of the lm_head for drafts, such as fp8.  [default: they use the model's own]",
        ),
    ] = None,
    cache: Annotated[str | None, typer.Option(help="f32 or bf16.  [default: f32 on a CPU, else bf16]")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Draw the weights from this seed.  [default: 0 for a named configuration]")
    ] = None,
    experts_from: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Checkpoint folder with other routed experts.")
    ] = None,
    latent_norm_eps: Annotated[
        float | None, typer.Option(metavar="EPS", help="Epsilon of the latent norms.  [default: the model's, or 1e-6]")
    ] = None,
    allow_nan: Annotated[bool, typer.Option("--allow-nan", help="Compile weights that aren't finite numbers.")] = False,
    no_weights: Annotated[bool, typer.Option("--no-weights", help="Leave the weights out: to inspect only.")] = False,
    no_kernel: Annotated[bool, typer.Option("--no-kernel", help="Leave the kernel out: only plan and prove.")] = False,
    dump: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the value of every stage there.")] = None,
) -> None:
    """Compile a model into an engine folder."""
    from tilecompile.cli.output import note
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
        prefill=prefill,
        drafts=drafts,
        placement=placement,
        context=context,
        reduction=reduction,
        max_seq_len=max_seq_len,
        weights=weights,
        draft_head=draft_head,
        cache=cache,
        seed=seed,
        experts_from=experts_from,
        latent_norm_eps=latent_norm_eps,
        allow_nan=allow_nan,
        no_weights=no_weights,
        no_kernel=no_kernel,
        dump=dump,
    )
    compiled = compile_with_progress(options)
    decode = compiled.programs[0]
    note(
        f"{output}: compiled {model} in {compiled.seconds:.1f} s; "
        f"a step runs {decode['tasks']} tasks with {decode['events']} events and {decode['edges']} edges, proved in "
        f"{compiled.proof.seconds:.1f} s"
    )


def compile_with_progress(options: CompileOptions) -> Compiled:
    from tilecompile.cli.output import StageProgress, note

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
