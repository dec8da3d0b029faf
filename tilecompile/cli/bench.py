"""tilecompile bench: an engine's speed against its machine's memory, its own variants, and peers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tilecompile.cli.gpu import DrawnWeights, Gpus, OnOneGpu, gpu_numbers
from tilecompile.errors import InputError
from tilecompile.measure.bench import DEFAULT_CONTEXT, DEFAULT_ROUNDS


def bench(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="Engine folder.")],
    context: Annotated[
        int | None, typer.Option(metavar="N", help=f"Positions in the caches.  [default: {DEFAULT_CONTEXT}, or all]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="1 to the engine's workers.")] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint folder that peers take their weights from.")] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="PEER,…", help="Measure these too: transformers, torch-compile; on a GPU cuda-graphs."),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COMMAND", help="A peer of your own: a command that prints its times. Repeatable."),
    ] = None,
    machine: Annotated[
        str | None, typer.Option(help="Machine, or its TOML file, that says what a GPU's memory gives.")
    ] = None,
    ablate: Annotated[bool, typer.Option("--ablate", help="Measure the engine without parts of it too.")] = False,
    prefill: Annotated[
        bool, typer.Option("--prefill/--no-prefill", help="Measure how fast prompts are read too.")
    ] = True,
    speculation: Annotated[
        bool, typer.Option("--speculation/--no-speculation", help="Measure drafts too, where the engine makes them.")
    ] = True,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text that drafts are measured on.  [default: built in]")
    ] = None,
    acceptance: Annotated[
        str | None,
        typer.Option(metavar="A,…", help="Rates at which drafts are accepted.  [drawn weights: 0.4,0.6,0.8]"),
    ] = None,
    gpus: Gpus = None,
    on_one_gpu: OnOneGpu = False,
    weights: DrawnWeights = None,
    rounds: Annotated[int, typer.Option(help="Rounds; each measures everything once.")] = DEFAULT_ROUNDS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure an engine's steps against the bandwidth of this machine's memory.

    The caches are filled with random numbers up to the context. Each round measures the best of several kernels that
    only read, on a working set of a step's size, and the engine. The roof fraction is the bytes that a step must
    read (no padding, no replication) over what the machine reads in the same time.

    --ablate runs the same bodies with a barrier after every operator; without prefetch hints, which needs a C++
    compiler and leaves the CPU's own prefetchers on; and without tapes, that is with the weights in the order of
    the checkpoint, which takes memory for them once more.

    Prompts are read from an empty cache, and speculation is measured at each number of drafts and at `auto` against
    none, alternately: a checkpoint's engine continues pieces of a text; with drawn weights, or --acceptance, what the
    model would say takes the place of a given part of its drafts.

    Peers run in processes of their own, each at the fastest of its settings, and get the engine's weights from --model,
    or draw them from the same seed. Where the engine is for GPUs, they run on one GPU in bf16, after the engine is
    closed, and the roof is what the machine's file states: measured if it is calibrated, else the data sheet's.

    A peer's COMMAND may name {model}, {prompt_tokens} and {new_tokens}. It generates greedily, whatever comes, and
    prints one line {"ms_per_step": …, "first_token_ms": …}. For vLLM and SGLang: --peer "vllm=python
    examples/peers/vllm_steps.py {model} {prompt_tokens} {new_tokens}", and sglang_steps.py likewise.
    """
    from tilecompile.cli.output import StageProgress, print_json
    from tilecompile.measure.bench.against import Peers
    from tilecompile.measure.bench.command import command_peers
    from tilecompile.measure.bench.measure import BenchOptions, bench_engine
    from tilecompile.measure.bench.report import print_report
    from tilecompile.measure.bench.speculation import Drafting

    names = tuple(dict.fromkeys(name.strip() for name in against.split(","))) if against is not None else ()
    if "" in names:
        raise InputError(f"--against is {against!r}, want peers with commas between them")
    peers = Peers(names, command_peers(peer or []), model)
    options = BenchOptions(
        *(engine, context, threads, peers, ablate, rounds, machine, gpu_numbers(gpus), on_one_gpu, weights),
        prefill=prefill,
        speculation=speculation,
        drafting=Drafting(text, _rates(acceptance)),
    )
    with StageProgress() as progress:
        found = bench_engine(options, progress)
    if as_json:
        print_json(found)
    else:
        print_report(found)


def _rates(text: str | None) -> tuple[float, ...]:
    """The rates that --acceptance names; InputError for what isn't a number."""
    try:
        return tuple(float(part) for part in text.split(",")) if text is not None else ()
    except ValueError:
        raise InputError(f"--acceptance is {text!r}, want numbers from 0 to 1 with commas between them") from None
