"""What to compile and how: the options of `tilecompile compile`, checked without reading the model."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tilecompile.errors import InputError
from tilecompile.models.registry import NAMED
from tilecompile.runtime.folder.manifest import NAME as MANIFEST
from tilecompile.runtime.format import BODY_TOKENS, MAX_DRAFTS, MAX_TOKENS
from tilecompile.runtime.machine import cpu_features, usable_cores
from tilecompile.runtime.weight_formats import FORMATS
from tilecompile.schedules import PLACEMENTS, REDUCTIONS
from tilecompile.schedules.machine import Machine, load_machine
from tilecompile.targets.cpu.build import ISAS, Isa, find_compiler

TARGETS: dict[str, tuple[str, ...]] = {
    "cpu": ("avx512", "avx2", "portable"),
    "cpu-avx2": ("avx2",),
    "cpu-portable": ("portable",),
    "sm_90a": (),
    "sm_100a": (),
}
"""Targets, and the instruction sets of each: the first that this machine has is taken, or else the last.

Targets without instruction sets are GPUs.
"""

MACHINES = {"sm_90a": "h100", "sm_100a": "b200"}
"""The default machine of a target; targets that aren't here are for this machine."""

CACHE_DTYPES = ("f32", "bf16")

KEEP = "keep"
"""Weights in the form in which they are stored, where the target has it: the default."""

PREFILL, DRAFTS = 32, 3
"""Tokens of a prompt that a step takes, and tokens that a round of speculation drafts, on a machine without costs. On
one with costs both are chosen by them (`passes/choose_steps.py`)."""

MAX_DEVICES = 1024
MAX_WORKERS = 65536
MAX_GRANULARITY = 64
MAX_SEQ_LEN = 1 << 24
MAX_SEED = (1 << 63) - 1


@dataclass(frozen=True)
class Settings:
    """The options with every choice made for this machine. `workers` counts those of one device, `context`
    is for placement `auto`.

    Operators are cut into about `workers` times `granularity` tasks on each device. A step takes `prefill` tokens of a
    prompt at most, and a round of speculation drafts `drafts`; None: by the machine's costs. `kernel` says whether one
    is made. GPUs have no instruction set.
    """

    target: str
    isa: Isa | None
    machine: Machine
    devices: int
    workers: int
    placement: str
    reduction: str | None
    context: int | None
    cache: str
    granularity: int
    prefill: int | None
    drafts: int | None
    kernel: bool


@dataclass(frozen=True)
class CompileOptions:
    """Options of a compilation; None leaves a choice to the compiler.

    `model` is a checkpoint folder or a named configuration, `seed` is for drawn weights, `workers` counts those of
    one device, `granularity` the tasks that each of them gets of an operator, `prefill` the tokens of a prompt that
    a step takes, `drafts` those that a round of speculation drafts, `draft_head` the format of a copy of the lm_head
    for drafts (None: they use the model's own), `context` is the number of positions that placement `auto` is chosen
    for, `experts_from` a second checkpoint folder for the experts that tokens are routed to, `latent_norm_eps` the
    epsilon of the latent norms, `allow_nan` compiles numbers that aren't finite, `on_one_gpu` divides the workers of
    one GPU over the devices, `no_kernel` only plans and proves, `dump` is a folder for every stage's value in readable
    form.
    """

    model: str
    output: Path
    force: bool = False
    target: str | None = None
    machine: str | None = None
    devices: int | None = None
    workers: int | None = None
    on_one_gpu: bool = False
    granularity: int = 1
    prefill: int | None = None
    drafts: int | None = None
    placement: str | None = None
    reduction: str | None = None
    context: int | None = None
    max_seq_len: int | None = None
    weights: str | None = None
    draft_head: str | None = None
    cache: str | None = None
    seed: int | None = None
    experts_from: Path | None = None
    latent_norm_eps: float | None = None
    allow_nan: bool = False
    no_weights: bool = False
    no_kernel: bool = False
    dump: Path | None = None

    def resolve(self) -> Settings:
        """Checks everything that needs no model and makes the choices. InputError names the option at fault."""
        _one_of("--placement", self.placement, PLACEMENTS)
        _one_of("--reduction", self.reduction, REDUCTIONS)
        _one_of("--target", self.target, TARGETS)
        _one_of("--weights", self.weights, (KEEP, *FORMATS))
        _one_of("--draft-head", self.draft_head, FORMATS)
        _one_of("--cache", self.cache, CACHE_DTYPES)
        _in_range("--devices", self.devices, 1, MAX_DEVICES)
        _in_range("--workers", self.workers, 1, MAX_WORKERS)
        _in_range("--granularity", self.granularity, 1, MAX_GRANULARITY)
        _in_range("--drafts", self.drafts, 0, MAX_DRAFTS)
        _in_range("--max-seq-len", self.max_seq_len, 1, MAX_SEQ_LEN)
        _in_range("--context", self.context, 1, MAX_SEQ_LEN)
        _in_range("--seed", self.seed, 0, MAX_SEED)
        machine = load_machine(self.machine or MACHINES.get(self.target or "", "cpu"))
        _in_range("--prefill", self.prefill, 1, MAX_TOKENS if machine.is_cpu else BODY_TOKENS)
        target = self.target or machine.target
        if target.split("-")[0] != machine.target:
            raise InputError(
                f"--target {target} contradicts --machine {machine.name}, whose target is {machine.target}"
            )
        if self.on_one_gpu:
            devices, workers = self._divided(machine)
        else:
            devices = self._agree("--devices", self.devices, machine, machine.devices) or machine.devices
            stated = self._agree("--workers", self.workers, machine, machine.workers)
            workers = stated or machine.cores or usable_cores()
        _in_range(f"devices of machine {machine.name}", devices, 1, MAX_DEVICES)
        _in_range(f"workers of machine {machine.name}", workers, 1, MAX_WORKERS)
        if workers < 2 and not machine.is_cpu:
            raise InputError("workers of a device are 1, want 2 or more on a GPU: loaders learn of experts by events")
        placement = self.placement or PLACEMENTS[devices > 1]
        if placement == "single" and devices != 1:
            raise InputError(
                f"placement single uses 1 device, {devices} are requested; placements: {', '.join(PLACEMENTS)}"
            )
        if self.context is not None and placement != "auto":
            raise InputError(f"--context {self.context} is what placement auto is chosen for; placement is {placement}")
        if placement == "auto":
            self._check_auto(devices, machine)
        if placement == "single" and self.reduction is not None:
            raise InputError(f"--reduction {self.reduction} is the form of sums over devices, want 2 devices or more")
        self._check_model()
        self._check_paths()
        if machine.is_cpu and not self.no_kernel:
            find_compiler()
        return Settings(
            target=target,
            isa=_isa(target) if machine.is_cpu else None,
            machine=machine,
            devices=devices,
            workers=workers,
            placement=placement,
            reduction=self.reduction,
            context=self.context,
            cache=self.cache or ("f32" if machine.is_cpu else "bf16"),
            granularity=self.granularity,
            prefill=self.prefill,
            drafts=self.drafts,
            kernel=not self.no_kernel,
        )

    def _divided(self, machine: Machine) -> tuple[int, int]:
        """Devices, and workers of each, where the devices share one GPU."""
        if machine.is_cpu or self.devices is None or self.devices < 2:
            raise InputError(
                "--on-one-gpu divides the workers of a GPU over devices: want --devices of 2 or more, and a --machine "
                "or --target with GPUs"
            )
        most = (machine.workers or 0) // self.devices
        if not most or (self.workers or 0) > most:
            raise InputError(
                f"--on-one-gpu: {self.devices} devices of {self.workers or 1} workers want "
                f"{self.devices * (self.workers or 1)} SMs, one GPU of machine {machine.name} has {machine.workers}"
            )
        return self.devices, self.workers or most

    def _agree(self, flag: str, given: int | None, machine: Machine, stated: int | None) -> int | None:
        """The value that the flag or the machine gives; an error when an explicit machine says otherwise."""
        if self.machine is not None and given is not None and stated is not None and given != stated:
            raise InputError(f"{flag} {given} contradicts --machine {machine.name}, which has {stated}")
        return given if given is not None else stated

    def _check_auto(self, devices: int, machine: Machine) -> None:
        if devices == 1:
            raise InputError("placement auto is for 2 devices or more, got 1")
        if self.reduction is not None:
            raise InputError(f"--reduction {self.reduction}: placement auto chooses the form of sums by itself")
        if machine.simulator is None:
            raise InputError(
                f"placement auto goes by simulated time, and machine {machine.name} states no costs; give --machine "
                "with a file that `tilecompile calibrate` has written"
            )

    def _check_model(self) -> None:
        if self.no_weights and self.seed is not None:
            raise InputError("--seed draws weights and --no-weights leaves them out; give one of the two")
        if (eps := self.latent_norm_eps) is not None and not 0 < eps < 1:
            raise InputError(f"--latent-norm-eps is {eps}, want a number between 0 and 1")
        if self.experts_from is not None and (self.seed is not None or self.no_weights or self.model in NAMED):
            raise InputError(f"--experts-from {self.experts_from}: is for a checkpoint folder with weights of its own")
        if self.model in NAMED:
            return
        path = Path(self.model)
        if not self.model or not path.exists():
            raise InputError(
                f"model {self.model!r} is neither a checkpoint folder nor a named configuration; "
                f"there are: {', '.join(NAMED)}"
            )
        if not path.is_dir():
            raise InputError(f"{path}: is a file, want a checkpoint folder (with config.json and *.safetensors)")
        if self.seed is not None and any(path.glob("*.safetensors")):
            raise InputError(f"--seed {self.seed} draws weights, but {path} has its own; leave out --seed")

    def _check_paths(self) -> None:
        output, dump = self.output, self.dump
        if output.is_symlink() or (output.exists() and not output.is_dir()):
            raise InputError(f"{output}: is a file or a link, want a new folder for the engine")
        if output.exists() and any(output.iterdir()):
            if not (output / MANIFEST).is_file():
                raise InputError(f"{output}: exists, is not empty and is no engine; give another --output")
            if not self.force:
                raise InputError(f"{output}: exists; give --force to replace it")
        for path in (output, dump):
            above = next((p for p in path.absolute().parents if p.exists()), None) if path else None
            if above and not above.is_dir():
                raise InputError(f"{path}: can't be made: {above} is a file")
            if above and not os.access(above, os.W_OK):
                raise InputError(f"{path}: can't be made: {above} can't be written to")
        if dump == Path():
            raise InputError("--dump is the current folder, want a folder of its own")
        if dump and dump.exists() and not dump.is_dir():
            raise InputError(f"--dump {dump}: is a file, want a folder")


def _one_of(flag: str, value: str | None, names: Iterable[str]) -> None:
    if value is not None and value not in names:
        raise InputError(f"{flag} {value!r} is unknown; there are: {', '.join(names)}")


def _in_range(flag: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise InputError(f"{flag} is {value}, want {low} to {high}")


def _isa(target: str) -> Isa:
    isas = [ISAS[name] for name in TARGETS[target]]
    return next((isa for isa in isas if cpu_features() >= set(isa.features)), isas[-1])
