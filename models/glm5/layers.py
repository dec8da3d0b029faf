"""The kinds of a GLM-5 model's layers, from the fields of a `config.json` that state them in one way or another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tilecompile.models.fields import refuse
from tilecompile.runtime.errors import InputError


def _kinds(values: Any, field: str, kinds: tuple[str, str], layers: int, spare: int, source: str) -> tuple[str, ...]:
    """A list with one kind a layer; up to `spare` entries more (for the MTP layer) are dropped."""
    if not isinstance(values, list) or any(v not in kinds for v in values):
        raise refuse(source, field, values, f"a list of {kinds[0]!r} and {kinds[1]!r}")
    if not layers <= len(values) <= layers + spare:
        raise InputError(f"{source}: {field} has {len(values)} entries, want {layers}, one a layer")
    return tuple(values[:layers])


def indexer_types(values: Mapping[str, Any], layers: int, source: str) -> tuple[str, ...]:
    """One kind a layer: the explicit list, else the pattern, else the schedule by frequency and offset.

    Where several are stated, they must agree.
    """
    spare, names = 1 if values.get("num_nextn_predict_layers") else 0, ("full", "shared")
    pattern = values.get("index_topk_pattern")
    if isinstance(pattern, str):
        pattern = [{"F": "full", "S": "shared"}.get(letter, letter) for letter in pattern]
    given = {"indexer_types": values.get("indexer_types"), "index_topk_pattern": pattern}
    stated = {field: _kinds(v, field, names, layers, spare, source) for field, v in given.items() if v is not None}
    if not stated or "index_topk_freq" in values:
        freq = max(_schedule_number("index_topk_freq", values, 1, source), 1)
        offset = _schedule_number("index_skip_topk_offset", values, 2, source)
        kinds = tuple("shared" if max(i - offset + 1, 0) % freq else "full" for i in range(layers))
        stated[f"the schedule of index_topk_freq {freq} and index_skip_topk_offset {offset}"] = kinds
    return _first_full(_same_kinds(stated, source), next(iter(stated)), source)


def _first_full(kinds: tuple[str, ...], field: str, source: str) -> tuple[str, ...]:
    """The kinds. InputError where the first layer has none whose selection it could use."""
    if kinds[0] != "full":
        raise InputError(f"{source}: {field} begins with a shared layer, want a full one: none has selected before it")
    return kinds


def _same_kinds(stated: Mapping[str, tuple[str, ...]], source: str) -> tuple[str, ...]:
    """The kinds of layers that fields state. InputError that names two fields and the first layer where they differ."""
    (first, kinds), *others = stated.items()
    for field, found in others:
        for layer, (ours, theirs) in enumerate(zip(kinds, found, strict=True)):
            if ours != theirs:
                raise InputError(
                    f"{source}: layer {layer} is {ours} in {first} and {theirs} in {field}: they contradict each other"
                )
    return kinds


def _schedule_number(field: str, values: Mapping[str, Any], default: int, source: str) -> int:
    value = values.get(field, default)
    if type(value) is not int:
        raise refuse(source, field, value, "an integer")
    return value


def mlp_layer_types(values: Mapping[str, Any], layers: int, source: str) -> tuple[str, ...]:
    """One kind a layer: the explicit list, else `first_k_dense_replace` dense layers and sparse ones after them.

    Where both are stated, they must agree.
    """
    field, spare = "mlp_layer_types", 1 if values.get("num_nextn_predict_layers") else 0
    given, stated = values.get(field), {}
    if given is not None:
        stated[field] = _kinds(given, field, ("dense", "sparse"), layers, spare, source)
    if not stated or "first_k_dense_replace" in values:
        first = _schedule_number("first_k_dense_replace", values, 3, source)
        dense = min(max(first, 0), layers)
        stated[f"first_k_dense_replace {first}"] = ("dense",) * dense + ("sparse",) * (layers - dense)
    return _same_kinds(stated, source)
