"""Peers beside the engine, one by one: on a CPU the engine's steps are measured right before and after each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from tilecompile.errors import InputError, TilecompileError
from tilecompile.measure import peers
from tilecompile.measure.bench.command import CommandPeer, check_model
from tilecompile.measure.commands import check_names
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.progress import Progress


@dataclass(frozen=True)
class Peers:
    """The peers of a run: those that come with the package by `names`, then `commands`. `model`: where they get the
    engine's weights."""

    names: Sequence[str] = ()
    commands: Sequence[CommandPeer] = ()
    model: str | None = None

    def check(self, manifest: Manifest) -> None:
        """InputError for a name that is no peer's, or where peers can't have the engine's weights."""
        if self.model is not None and not self.names and not any(c.needs_model() for c in self.commands):
            raise InputError("--model says where peers get the weights: give --against too")
        check_names([*self.names, *(command.name for command in self.commands)])
        for name in self.names:
            peers.check(name)
            peers.check_device(name, manifest)
        if None in [peers.check(name) for name in self.names]:  # some that can run
            peers.weights_job(manifest, self.model)
        check_model(self.commands, manifest, self.model)


@dataclass(frozen=True)
class Again:
    """How the engine is measured once more beside a peer: `step_ms` its steps, and `prefill_ms` its reading of a prompt
    of `prompt_tokens` (None: that isn't compared), with a description for people. Both return milliseconds.

    They are called before and after each peer, so that both times are of the same minutes; or return times from before.
    """

    step_ms: Callable[[str], list[float]]
    prompt_tokens: int | None
    prefill_ms: Callable[[str], list[float]]


def measure_peers(
    asked: Peers,
    manifest: Manifest,
    context: int,
    threads: int,
    again: Again,
    progress: Progress,
) -> list[dict[str, Any]]:
    """A record for each peer: `name`, `ms_per_step`, `ratio` (its time over the engine's), `engine_ms_per_step`, and
    what else `peers.bench` or `CommandPeer.measure` returns; or `name` and `error`. Each entry of its `prefill`, if it
    has one, gets `ratio` and `engine_ms` too, of a prompt.
    """

    def bench(name: str) -> Callable[[Progress], dict[str, Any]]:
        return lambda note: peers.bench(
            name,
            engine_manifest=manifest,
            model=asked.model,
            context=context,
            threads=threads,
            progress=note,
            prompt_tokens=again.prompt_tokens,
        )

    def command(peer: CommandPeer) -> Callable[[Progress], dict[str, Any]]:
        return lambda note: peer.measure(manifest, asked.model, context, note)

    runs = [(name, peers.check(name), bench(name)) for name in asked.names]
    runs += [(peer.name, peer.unavailable(), command(peer)) for peer in asked.commands]
    return [_record(*run, again, progress) for run in runs]


def _record(
    name: str,
    reason: str | None,
    run: Callable[[Progress], dict[str, Any]],
    again: Again,
    progress: Progress,
) -> dict[str, Any]:
    if reason is not None:
        return {"name": name, "error": reason}
    before = f"{name}: the engine before it"
    ms, prefill = again.step_ms(before), again.prefill_ms(before)
    try:
        record = run(lambda stage, done, total: progress(f"{name}: {stage}", done, total))
    except TilecompileError as error:  # what else was measured is not lost
        return {"name": name, "error": str(error)}
    after = f"{name}: the engine after it"
    mine = median(ms + again.step_ms(after))
    if entries := record.get("prefill"):
        read = median(prefill + again.prefill_ms(after))
        record["prefill"] = [{**entry, "ratio": entry["ms"] / read, "engine_ms": read} for entry in entries]
    if "spread" in record:
        record["spread"] = dict(zip(("min", "max"), record["spread"], strict=True))
    return {**record, "ratio": record["ms_per_step"] / mine, "engine_ms_per_step": mine}
