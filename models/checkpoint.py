"""Parameters from a checkpoint folder: windows of tensors in safetensors files, in whatever form they are stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from torch import Tensor

from tilecompile.models.fields import check_method, fp8_block
from tilecompile.models.files import read_object
from tilecompile.models.listed import listed
from tilecompile.models.prefix import model_names, prefixes
from tilecompile.models.registry import read_config, spec_of
from tilecompile.models.shards import Shards
from tilecompile.models.spec import ModelConfig
from tilecompile.models.stored import Fault, Finder, Form
from tilecompile.models.weights import Weights
from tilecompile.runtime.errors import InputError

MODELOPT = "hf_quant_config.json"
IGNORED = (".input_scale", ".input_global_scale", ".k_scale", ".v_scale")
"""Ends of names of scales that quantise activations and caches; here those stay as they are."""

WRONG_WITHOUT = (".pre_quant_scale", ".weight_zero_point", ".weight_g_idx", ".g_idx")
"""Ends of names of tensors without which others are read wrong."""

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Place:
    """Where a tensor is: in a form, from a row of one of its matrices on."""

    form: Form
    matrix: int = 0
    row: int = 0

    def window(self, rows: slice, cols: slice) -> Tensor:
        """Rows and columns of the tensor."""
        return self.form.window(self.matrix, slice(self.row + rows.start, self.row + rows.stop), cols)


class Folder:
    """A checkpoint folder: its configuration and its tensors. InputError where either can't be read.

    It is a model's `HeldTensors`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir():
            found = "is a file" if path.exists() else "doesn't exist"
            raise InputError(f"{path}: {found}, want a folder with config.json and model.safetensors")
        file = path / "config.json"
        if not file.is_file():
            raise InputError(f"{path}: no config.json")
        self.values = read_object(file)
        self.config = read_config(self.values, str(file))
        if (path / MODELOPT).is_file():
            values = read_object(path / MODELOPT).get("quantization")
            stated = values if isinstance(values, dict) else {}
            check_method("quantization", {"quant_method": "modelopt", **stated}, str(path / MODELOPT))
        self.shards = Shards(path)
        self.spec = spec_of(self.config)
        needed = [w.tensor for p in self.spec.parameters(self.config).values() for w in p.windows]
        names = model_names(self.shards.files, needed, self.spec.prefix)
        self.finder = Finder(self.shards, names, fp8_block(self.values, str(file)))
        self._joined = self.spec.joined(self.config)

    def holds(self, tensor: str) -> bool:
        """Whether a tensor is there, in any form."""
        return self.finder.holds(tensor)

    def differ(self, one: str, other: str) -> bool:
        """Whether two tensors have different values. InputError where they can't be read."""
        try:
            shape, again = (self.shards.header(self.finder.names[name])[1] for name in (one, other))
            if shape != again or len(shape) != 2:
                return True
            forms = [self.finder.find(name, shape) for name in (one, other)]
        except (Fault, KeyError) as error:
            raise InputError(f"{self.path}: {one} and {other} can't be compared: {error}") from error
        for begin in range(0, shape[0], ROWS_AT_ONCE):
            rows = slice(begin, min(begin + ROWS_AT_ONCE, shape[0]))
            a, b = (form.window(0, rows, slice(0, shape[1])) for form in forms)
            if not bool((a.float() == b.float()).all()):
                return True
        return False

    def place(self, tensor: str, shape: tuple[int, ...]) -> Place:
        """Where a tensor is. Fault if it can't be read."""
        window = self._joined.get(tensor)
        if window is not None and not self.holds(tensor) and self.holds(window.tensor):
            return Place(self.finder.find(window.tensor, window.shape), window.matrix, window.row)
        return Place(self.finder.find(tensor, shape))

    def elsewhere(self, tensor: str) -> str:
        """What is known of a missing tensor's name, in words."""
        found = prefixes(self.shards.files, tensor, self.spec.prefix)
        if not tensor.startswith(self.spec.prefix) or not found:
            return ""
        return f"; {tensor} is there as {found[0]}{tensor.removeprefix(self.spec.prefix)}: all names must begin alike"

    def unused(self, places: Iterable[Place]) -> list[str]:
        """The stored names of tensors that no place has and that the model would not do without unnoticed."""
        used = {part for place in places for part in place.form.parts}
        rest = {own: name for own, name in self.finder.names.items() if name not in used}
        if wrong := [name for name in rest.values() if name.endswith(WRONG_WITHOUT)]:
            raise InputError(f"{self.path}: {listed(wrong)}: weights with such tensors are not supported")
        return [n for own, n in rest.items() if not own.endswith(IGNORED) and not self.spec.spare(self.config, own)]


@dataclass(frozen=True)
class Both:
    """The `HeldTensors` of a folder whose routed experts are in a second one."""

    main: Folder
    second: Folder

    def holds(self, tensor: str) -> bool:
        """Whether a tensor is there, in any form."""
        return (self.second if self.main.spec.routed(tensor) else self.main).holds(tensor)

    def differ(self, one: str, other: str) -> bool:
        """Whether two tensors, neither of them an expert's, have different values."""
        return self.main.differ(one, other)


class Checkpoint(Weights[ModelConfig]):
    """A checkpoint folder: config.json, and model.safetensors or its shards with their index.

    All tensors that the model needs are checked when the folder is opened; one InputError names all faults. With
    `experts_from` the experts that tokens are routed to come from a second folder of the same model. `stored` counts
    the numbers of matrices by the form in which they are stored.
    """

    def __init__(self, folder: str | Path, experts_from: str | Path | None = None, finite: bool = False) -> None:
        self.folder, main = Path(folder), Folder(Path(folder))
        second = None if experts_from is None else _second(main, Path(experts_from))
        config, notes = main.spec.held(main.config, main if second is None else Both(main, second))
        super().__init__(config, str(folder), tuple(f"{folder}: {note}" for note in notes), finite)
        needed = {w.tensor: w.shape for p in self.parameters.values() for w in p.windows}
        routed = {name for name in needed if second is not None and main.spec.routed(name)}
        self._places = _places(main, {name: shape for name, shape in needed.items() if name not in routed})
        unused = main.unused(self._places.values())
        if second is not None:
            unused = [name for name in unused if not main.spec.routed(name)]
            self._places |= _places(second, {name: needed[name] for name in routed})
        if unused:
            self.notes += (f"{folder}: {_tensors(len(unused))} not used: {listed(unused)}",)
        self.stored = {}
        for parameter in self.parameters.values():
            for window in parameter.windows if len(parameter.shape) > 1 else ():
                kind = self._places[window.tensor].form.kind
                self.stored[kind] = self.stored.get(kind, 0) + prod(parameter.shape[-2:])
        self.states_type = main.values.get("dtype", main.values.get("torch_dtype"))

    def _window(self, tensor: str, shape: tuple[int, ...], rows: slice, cols: slice) -> Tensor:
        return self._places[tensor].window(rows, cols)


def _second(main: Folder, path: Path) -> Folder:
    """The folder whose experts take the place of the first one's. InputError where it is of another model."""
    second = Folder(path)
    one, other = main.config.to_dict(), second.config.to_dict()
    for field in one:
        if field not in main.spec.same_results and one[field] != other.get(field):
            raise InputError(
                f"--experts-from {path}: {field} is {other.get(field)!r}, and {one[field]!r} in {main.path}"
            )
    return second


def _places(folder: Folder, needed: Mapping[str, tuple[int, ...]]) -> dict[str, Place]:
    """Where each needed tensor is. One InputError names all that can't be read."""
    places: dict[str, Place] = {}
    faults: dict[tuple[str, str], list[str]] = {}
    lost = ""
    for name, shape in needed.items():
        try:
            places[name] = folder.place(name, shape)
        except Fault as fault:
            faults.setdefault((fault.kind, fault.required), []).append(fault.words)
            if fault.kind == "missing" and not lost:
                lost = folder.elsewhere(name)
    if faults:
        texts = [f"{_tensors(len(n))} {kind}: {listed(n)}{required}" for (kind, required), n in faults.items()]
        raise InputError(f"{folder.path}: {'; '.join(texts)}{lost}")
    return places


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count} tensors"
