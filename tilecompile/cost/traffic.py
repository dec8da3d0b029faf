"""How many bytes a step must read: the model's formula, without padding and without replication.

The compiler takes the formula from a graph (`graph_reads.py`) and states it in engine.json (`reads` of a program), so
that an engine alone is enough to evaluate it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.validate import mismatch

SCHEMA: dict[str, Any] = {"fixed": int, "caches": [{"row_bytes": int, "above": int, "rows": int}]}
"""A program's `reads` in engine.json."""


@dataclass(frozen=True)
class CacheReads:
    """What a step reads of some caches: `row_bytes` for each position, at most `rows` positions, and nothing while the
    context is not above `above` positions."""

    row_bytes: int
    above: int
    rows: int


@dataclass(frozen=True)
class Reads:
    """Distinct bytes that a step must read: `fixed` whatever the context, and those of caches."""

    fixed: int
    caches: tuple[CacheReads, ...]

    def at(self, context: int) -> int:
        """Bytes of one step at a context of `context` positions, the step's own included."""
        return self.fixed + sum(c.row_bytes * min(context, c.rows) for c in self.caches if context > c.above)

    def mean(self, contexts: Iterable[int]) -> float:
        """Bytes of a step in the mean over steps with these contexts."""
        found = [self.at(context) for context in contexts]
        return sum(found) / len(found)

    def stated(self) -> dict[str, Any]:
        """The formula as engine.json states it."""
        return {"fixed": self.fixed, "caches": [vars(c) for c in self.caches]}


def stated_reads(manifest: Manifest, program: str = "decode") -> Reads:
    """The formula that an engine states for a step program. EngineError if it doesn't."""
    found: Any = manifest.program(program).get("reads")
    wrong = mismatch(found, SCHEMA, f"reads of program {program}")
    if wrong:
        raise EngineError(f"{manifest.path}: {wrong}; compile the model again")
    return Reads(found["fixed"], tuple(CacheReads(**{k: c[k] for k in SCHEMA["caches"][0]}) for c in found["caches"]))
