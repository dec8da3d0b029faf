"""A block of the GPU kernel: its threads, and how its shared memory is divided."""

from __future__ import annotations

from dataclasses import dataclass

SHARED_BYTES = 232448
"""Shared memory that one block can have on the SMs of all targets: 227 KB."""

SCRATCH_ALIGN = 1024
"""Bytes that the scratch memory of bodies is aligned to, and a multiple of which it takes."""

LEAST_SLOTS = 2
"""Fewest slots of a weight ring."""

BODY_TOKENS = 8
"""Most tokens of a step that bodies take: a warp each, or a column of the tensor cores' second operand."""

PARTIAL_BYTES = 16384
"""Scratch memory for the partial sums of a body that streams weights; those of one panel of each, if that is more."""

MEGAKERNEL = "megakernel"
"""Name of the resident kernel in a cubin."""

FILL, FILL_THREADS = "random_fill", 256
"""Name of the kernel that fills memory, a block a DeviceFill, and its threads."""


@dataclass(frozen=True)
class BlockShape:
    """A block: warps that run bodies and one that loads, and its shared memory in bytes.

    At the front of the shared memory are `front_bytes` of the loop's own, then `scratch_bytes` for bodies, then the
    ring with slots of `slot_bytes` as far as `shared_bytes` go. While the loader waits for experts, it fetches
    `hint_bytes` of the next weights into the L2 cache. The kernels that tests run on a host have fewer lanes, warps and
    bytes.
    """

    lanes: int = 32
    warps: int = 8
    front_bytes: int = 2048
    slot_bytes: int = 16384
    hint_bytes: int = 65536
    scratch_bytes: int = 0
    shared_bytes: int = SHARED_BYTES

    @property
    def body_threads(self) -> int:
        """Threads that run bodies."""
        return self.warps * self.lanes

    @property
    def threads(self) -> int:
        """All threads: those that run bodies, and a warp that loads."""
        return self.body_threads + self.lanes

    @property
    def scratch(self) -> int:
        """Bytes that the scratch memory takes."""
        return -(-self.scratch_bytes // SCRATCH_ALIGN) * SCRATCH_ALIGN

    @property
    def slots(self) -> int:
        """Slots of the ring, less than LEAST_SLOTS where there is no room for it."""
        return max(0, self.shared_bytes - self.front_bytes - self.scratch) // self.slot_bytes


BLOCK = BlockShape()
"""The block of all targets, without scratch memory."""
