"""What the names of a checkpoint's tensors begin with: tools put a model into another, or leave out its own name."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def model_names(stored: Collection[str], needed: Sequence[str], prefix: str) -> dict[str, str]:
    """The stored names by those that the model uses.

    Of the names in `needed` most begin with `prefix`; stored ones may begin with something else in its place, all with
    the same. The other names may have a part of that before them.
    """
    inside = [name.removeprefix(prefix) for name in needed if name.startswith(prefix)]
    if not prefix or not inside:
        return {name: name for name in stored}
    found = _found(stored, inside, prefix)
    if found == prefix:
        return {name: name for name in stored}
    parts = found.split(".")[:-1]
    above = [".".join([*parts[:n], ""]) for n in range(len(parts) - 1, 0, -1)]
    outside = {name.split(".")[0] for name in needed if not name.startswith(prefix)}
    return {_own(name, prefix, found, above, outside): name for name in stored}


def _found(stored: Collection[str], inside: Sequence[str], prefix: str) -> str:
    """What stands in the place of the prefix: whatever most names have."""
    names, first = set(stored), inside[0]
    candidates = [name.removesuffix(first) for name in sorted(names) if name == first or name.endswith(f".{first}")]
    return max((prefix, *candidates), key=lambda begin: sum(begin + name in names for name in inside))


def _own(name: str, prefix: str, found: str, above: Sequence[str], outside: Collection[str]) -> str:
    """The model's name of a stored tensor."""
    if name.split(".")[0] in outside:
        return name
    if name.startswith(found):
        return prefix + name.removeprefix(found)
    return next((name.removeprefix(begin) for begin in above if name.startswith(begin)), name)


def prefixes(stored: Collection[str], name: str, prefix: str) -> list[str]:
    """What stands before a name, which the model has after `prefix`, in stored names."""
    rest = name.removeprefix(prefix)
    return [found.removesuffix(rest) for found in sorted(stored) if found.endswith(f".{rest}") or found == rest]
