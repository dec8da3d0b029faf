"""The systems whose warm-up can be measured: the engine, the package's peers, and commands that a user gives."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tilecompile.errors import InputError
from tilecompile.measure.commands import check_names, filled, named_command
from tilecompile.measure.peers.registry import PEERS, absent

PLACES = ("engine", "model", "ids", "threads", "dtype", "device")
"""What a command may name in braces: engine folder, checkpoint folder, prompt ids with commas, threads, bf16 or f32,
and where the engine runs, cpu or cuda."""


@dataclass(frozen=True)
class System:
    """A command that runs from process start to the first token and reports marks on the way (`marks.py`).

    Places in braces are filled in (`PLACES`). Every run gets an empty compile cache, unless `keeps_cache`. `gpu_only`
    ones can't be measured beside an engine for a CPU.
    """

    name: str
    command: tuple[str, ...]
    about: str
    needs: tuple[str, ...] = ()
    keeps_cache: bool = False
    gpu_only: bool = False

    def unavailable(self) -> str | None:
        """Why the system can't run here, in one line, or None."""
        if missing := absent(self.needs):
            return f"not installed: {', '.join(missing)}"
        return None if shutil.which(self.command[0]) else f"no program {self.command[0]}"

    def needs_model(self) -> bool:
        """Whether the command takes a checkpoint folder."""
        return any("{model}" in word for word in self.command)

    def filled(self, values: dict[str, str]) -> list[str]:
        """The command with its places filled in."""
        return filled(self.command, {place: values.get(place, "") for place in PLACES})


def _program(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, str(Path(__file__).with_name("marks.py")), name, *arguments)


ENGINE = System("tilecompile", _program("run_tilecompile", "{engine}", "{ids}", "{threads}", "{device}"), "the engine")

SYSTEMS = {
    peer.name: System(
        peer.name,
        _program(peer.warm_up.program, *peer.warm_up.arguments),
        peer.warm_up.about,
        peer.needs,
        peer.warm_up.keeps_cache,
        peer.gpu_only,
    )
    for peer in PEERS.values()
    if peer.warm_up
}
"""The peers that come with the package, by name."""


def check_device(systems: list[System], device: str, engine: str) -> None:
    """InputError for a system that runs on GPUs only, beside an engine for a CPU."""
    for system in systems:
        if system.gpu_only and device != "cuda":
            raise InputError(f"--against: {system.name} runs on a GPU, and {engine} is for a CPU")


def chosen(against: str | None, peers: list[str]) -> list[System]:
    """The peers that a user asks for: names with commas between them, and NAME=COMMAND. InputError for a wrong one."""
    systems = []
    requested = [name for name in map(str.strip, (against or "").split(",")) if name]
    if against is not None and not requested:
        raise InputError(f"--against is {against!r}, want peers with commas between them")
    for name in requested:
        if name not in SYSTEMS:
            raise InputError(f"--against: {name!r} is unknown, want {', '.join(SYSTEMS)} (or --peer)")
        systems.append(SYSTEMS[name])
    for text in peers:
        name, words = named_command(text)
        systems.append(System(name, words, "a command given with --peer"))
    check_names([ENGINE.name, *(system.name for system in systems)])
    return systems
