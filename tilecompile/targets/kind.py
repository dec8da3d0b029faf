"""Task kinds: bodies specialised to shapes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One task kind: a body specialised to shapes. `index` is what `Instruction.kind` holds; 0 is the sink."""

    index: int
    op: str
    comment: str
    statement: str

    @property
    def function(self) -> str:
        """Name of the C++ function."""
        return f"k{self.index}_{self.op}"
