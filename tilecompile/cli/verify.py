"""tilecompile verify: checks an engine's files, and proves its schedule again."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilecompile.errors import EngineError

if TYPE_CHECKING:
    from tilecompile.runtime.folder.manifest import Manifest
    from tilecompile.verify.proof import Proof


def verify(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="Engine folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check an engine's files, weights included, and prove its schedule again.

    The proof knows nothing but the engine's own tables: no deadlock and no race at any timing, every wait exact, every
    row of every weight read once. The exit code is 0 if all of it holds, else 2.
    """
    from tilecompile.cli.output import print_json
    from tilecompile.runtime.folder.check import check_engine
    from tilecompile.show.units import size

    begin = time.perf_counter()
    checked = check_engine(engine)
    proof = prove(checked.manifest, checked.tables)
    about = summary(checked.manifest, proof)
    about |= {"files": checked.files, "bytes": checked.bytes, "file_seconds": round(checked.seconds, 3)}
    about["seconds"] = round(time.perf_counter() - begin, 3)
    if as_json:
        print_json({"engine": str(engine), **about})
        return
    print(f"{engine}: {checked.files} files of {size(checked.bytes)} are whole, in {checked.seconds:.2f} s")
    print(
        f"{proof.instructions} tasks, {proof.edges} edges, {proof.checks} checks, no fault, in {proof.seconds:.2f} s: "
        f"{proof.edges} thresholds, {proof.pairs} ordered pairs, {proof.spans} places in memory, {proof.runs} tape runs"
    )
    from tilecompile.runtime.names import by_layer

    for p, one in zip(about["programs"], proof.programs, strict=True):
        print(
            f"{p['name']}: {p['tasks']} tasks, {p['edges']} edges; reads {p['weights_read']} weights whole, "
            f"{len(p['weights_by_slot'])} by expert slot ({p['slots']} slots)"
        )
        print(f"  doesn't read: {', '.join(by_layer(one.unread)) or 'nothing'}")


def prove(manifest: Manifest, tables: dict[str, Any]) -> Proof:
    """The proof of an engine. EngineError if it doesn't hold."""
    from tilecompile.runtime.folder.operators import read_operators
    from tilecompile.runtime.folder.tables import arena_sizes
    from tilecompile.verify.proof import Memory, VerifyError
    from tilecompile.verify.proof import verify as proof_of

    data = manifest.data
    buffers = _names([b.get("tensor") for b in data.get("buffers", []) if isinstance(b, dict)])
    weights = _names(data["weights"].get("tensors", []))
    layers: list[int | None] = []
    with suppress(EngineError):  # without graph.json only the hints where to cut the proof are missing
        layers = [operator.layer for operator in read_operators(manifest)]
    try:
        memory = Memory(arena_sizes(manifest).astype("int64"))
        return proof_of(tables, data["operators"], memory, buffers, weights, layers=layers)
    except VerifyError as error:
        raise EngineError(f"{manifest.folder}: the schedule is wrong: {error}") from error


def summary(manifest: Manifest, proof: Proof) -> dict[str, Any]:
    """The proof's figures, by program too."""
    programs = [
        {
            "name": program["name"],
            "tasks": p.instructions,
            "edges": p.edges,
            "ordered_pairs": p.pairs,
            "tape_runs": p.runs,
            "slots": p.slots,
            "weights_read": p.weights,
            "weights_by_slot": list(p.gathered),
            "not_read": list(p.unread),
        }
        for program, p in zip(manifest.data["programs"], proof.programs, strict=True)
    ]
    figures = {"tasks": proof.instructions, "edges": proof.edges, "checks": proof.checks}
    return {"ok": True, **figures, "proof_seconds": round(proof.seconds, 3), "programs": programs}


def _names(found: Any) -> list[str]:
    """Names from a manifest, where keys beyond its schema may hold anything."""
    return [str(name) for name in found] if isinstance(found, list) else []
