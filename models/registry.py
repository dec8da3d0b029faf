"""The registered models, by the architecture that a `config.json` names, and their named configurations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tilecompile.models.files import read_object
from tilecompile.models.glm5 import GLM5
from tilecompile.models.spec import C, ModelConfig, ModelSpec
from tilecompile.runtime.errors import InputError

SPECS: dict[str, ModelSpec[Any]] = {}
"""The specs by architecture."""

NAMED: dict[str, ModelConfig] = {}
"""Configurations by the name that the command line takes."""


def register(spec: ModelSpec[C]) -> ModelSpec[C]:
    """Adds a model and its named configurations; architecture and names must be new."""
    if taken := [spec.architecture] * (spec.architecture in SPECS) + [name for name in spec.named if name in NAMED]:
        raise ValueError(f"{', '.join(taken)}: registered twice")
    SPECS[spec.architecture] = spec
    NAMED.update(spec.named)
    return spec


def spec_of(config: C) -> ModelSpec[C]:
    """The spec of a configuration's model."""
    return SPECS[config.architecture]


def _either(names: Iterable[str]) -> str:
    return " or ".join(map(repr, names))


def read_config(values: Mapping[str, Any], source: str = "config") -> ModelConfig:
    """The configuration from a `config.json`'s values. InputError, which begins with `source`, for an unknown
    architecture and for whatever the model side doesn't support.

    A file without `architectures` is recognised by its `model_type`.
    """
    nested = values.get("text_config")
    kinds = {values.get("model_type"), nested.get("model_type") if isinstance(nested, dict) else None}
    for kind, words in ((k, w) for spec in SPECS.values() for k, w in spec.relatives.items() if k in kinds):
        raise InputError(f"{source}: model_type is {kind!r}: {words}")
    found = values.get("architectures")
    if found is None:
        known = [spec for spec in SPECS.values() if spec.model_type == values.get("model_type")]
        wrong = f"model_type is {values.get('model_type')!r}, want {_either(s.model_type for s in SPECS.values())}"
    else:
        known = (
            [SPECS[name] for name in found if isinstance(name, str) and name in SPECS]
            if isinstance(found, list)
            else []
        )
        wrong = f"architectures is {found!r}, want {_either(SPECS)}"
    if not known:
        raise InputError(f"{source}: {wrong}")
    config: ModelConfig = known[0].config.from_dict(values, source)
    return config


def read_config_file(path: Path) -> ModelConfig:
    """The configuration in a `config.json`. InputError as `read_config` has it, and if the file can't be read."""
    return read_config(read_object(path), str(path))


def config_of(model: str) -> ModelConfig:
    """The configuration of a model by its name, or of a folder. InputError as `read_config_file` has it."""
    if model in NAMED:
        return NAMED[model]
    path = Path(model) / "config.json"
    if not path.is_file():
        raise InputError(f"{path.parent}: no config.json")
    return read_config_file(path)


register(GLM5)
