"""tilecompile debug: the contents of an engine's buffers after an operator, and the first operator that goes wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilecompile.errors import InputError

if TYPE_CHECKING:
    from tilecompile.runtime.replay.buffers import Arrays


def debug(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="Engine folder.")],
    ids: Annotated[str, typer.Option(metavar="N,N,…", help="Token ids to feed.")],
    stop_after: Annotated[
        str | None, typer.Option(metavar="OP@LAYER", help="Show what this operator wrote in the last id's step.")
    ] = None,
    interpreter: Annotated[
        bool, typer.Option("--interpreter", help="Ask the interpreter instead of the kernel.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Run both, and show the difference of every operator.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Interpret in a random legal order.")] = None,
    threads: Annotated[int | None, typer.Option(help="1 to the engine's workers.")] = None,
    save: Annotated[Path | None, typer.Option(metavar="DIR", help="Save the buffers there as .npy files.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the buffers of a step after an operator, from the kernel or from the interpreter.

    --compare finds the first operator whose results differ by more than rounding. Without --stop-after all buffers
    are shown.
    """
    try:
        numbers = [int(item) for item in ids.replace(",", " ").split()]
    except ValueError:
        raise InputError(f"--ids is {ids!r}, want whole numbers with commas between them") from None
    if compare and (stop_after or interpreter or save):
        raise InputError("--compare shows every operator of both; leave --stop-after, --interpreter and --save out")
    if compare:
        _compare(engine, numbers, threads, seed, as_json)
        return
    if seed is not None and not interpreter:
        raise InputError("--seed orders the interpreter's instructions; give --interpreter or --compare too")
    arrays = (
        _interpreted(engine, numbers, stop_after, seed) if interpreter else _run(engine, numbers, stop_after, threads)
    )
    if save:
        _save(arrays, save)
    rows = {name: _statistics(array) for name, array in arrays.items()}
    if as_json:
        from tilecompile.cli.output import print_json

        print_json({"engine": str(engine), "ids": numbers, "stop_after": stop_after, "buffers": rows})
        return
    for name, row in rows.items():
        figures = "  ".join(f"{key} {value:.6g}" for key, value in row.items() if isinstance(value, (int, float)))
        print(f"{name}  {row['dtype']}[{','.join(map(str, row['shape']))}]  {figures}")
        print(f"  {' '.join('nan' if value is None else f'{value:.6g}' for value in row['first'])}")


def _run(engine: Path, ids: list[int], stop_after: str | None, threads: int | None) -> Arrays:
    from tilecompile.runtime.load import load

    with load(engine, threads) as loaded:
        return loaded.buffers_after(ids, stop_after)


def _interpreted(engine: Path, ids: list[int], stop_after: str | None, seed: int | None) -> Arrays:
    _need_torch()
    from tilecompile.interpret.interpreter import Interpreter

    return Interpreter(engine, "program" if seed is None else seed).buffers_after(ids, stop_after)


def _need_torch() -> None:
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise InputError(
            "the interpreter needs the package torch, which is not installed: pip install 'tilecompile[compile]'"
        ) from None


def _statistics(array: Any) -> dict[str, Any]:
    """Shape, and figures over the elements that are numbers; the first few elements."""
    import numpy as np

    found: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype)}
    numbers = array[~np.isnan(array)].astype(np.float64) if array.dtype.kind == "f" else array.astype(np.float64)
    found["undefined"] = int(array.size - numbers.size)
    if numbers.size:
        found |= {"min": numbers.min(), "max": numbers.max(), "mean": numbers.mean()}
        found["rms"] = float(np.sqrt(np.mean(numbers.astype(np.float64) ** 2)))
    found = {key: value.item() if isinstance(value, np.generic) else value for key, value in found.items()}
    return found | {"first": [None if value != value else value for value in array.flatten()[:8].tolist()]}


def _save(arrays: Arrays, folder: Path) -> None:
    import numpy as np

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            np.save(folder / f"{name.replace('/', '_').replace('%', '')}.npy", array, allow_pickle=False)
    except OSError as error:
        raise InputError(f"{folder}: can't be written: {error.strerror or error}") from error


def _compare(engine: Path, ids: list[int], threads: int | None, seed: int | None, as_json: bool) -> None:
    _need_torch()
    from tilecompile.cli.output import print_json
    from tilecompile.interpret.compare import LIMIT, compare, first_wrong

    differences = compare(engine, ids, threads, "program" if seed is None else seed)
    first = first_wrong(differences)
    if as_json:
        print_json(
            {
                "engine": str(engine),
                "ids": ids,
                "limit": LIMIT,
                "first_wrong": first.operator if first else None,
                "operators": [vars(d) | {"error": "infinite" if d.error == math.inf else d.error} for d in differences],
            }
        )
        return
    width = max(len(d.operator) for d in differences)
    print(f"{'operator':<{width}}  {'op':<15} max error / RMS  undefined")
    for d in differences:
        error = "overwritten" if d.error is None else f"{d.error:.2e}"
        undefined = f"{d.undefined} of {d.elements}" if d.undefined else ""
        print(f"{d.operator:<{width}}  {d.op:<15} {error:>15}  {undefined:<15}{'  <- first' if d is first else ''}")
    print(f"first beyond {LIMIT:g}: {first.operator if first else 'none'}")
