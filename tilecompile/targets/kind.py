"""Task kinds: bodies specialised to shapes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One task kind: a body specialised to shapes. `index` is what `Instruction.kind` holds; 0 is the sink.

    `operator` is the name of the first operator of this kind, `shapes` what it works on; both are for people.
    """

    index: int
    op: str
    operator: str
    shapes: str
    statement: str

    @property
    def comment(self) -> str:
        """What the kernel's source says of it."""
        return f"{self.operator}: {self.shapes}"

    @property
    def function(self) -> str:
        """Name of the C++ function."""
        return f"k{self.index}_{self.op}"
