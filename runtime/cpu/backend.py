"""Memory that holds a CPU engine's arenas and weights, and launches of its kernel over it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tilecompile.runtime.backend import Bytes
from tilecompile.runtime.cpu.kernel import Kernel, open_kernel
from tilecompile.runtime.cpu.launch import Memory, clear, extra_begin, launch_kernel, load_memory
from tilecompile.runtime.cpu.memory import allocate
from tilecompile.runtime.folder.manifest import KERNEL, Manifest, check_same
from tilecompile.runtime.folder.tables import Tables


class CpuBackend:
    """Arenas and pools in this process's memory, and threads over them."""

    exclusive = False
    drawn: int | None = None

    def __init__(self, manifest: Manifest, threads: int, stall_ms: int) -> None:
        self.manifest, self.threads, self.stall_ms = manifest, threads, stall_ms
        self.library = open_kernel(manifest.file(KERNEL))
        self.memory: Memory = []
        self._beside: Memory = []

    def fill(self) -> None:
        """Gets the memory, and reads the weights into it."""
        self.memory = load_memory(self.manifest)
        check_same(self.manifest)

    def launch(self, tables: Tables, stops: Iterable[int] | None = None, extra: Sequence[int] = ()) -> Kernel:
        """See `Backend`."""
        memory = self.memory
        if extra:
            arenas = zip(memory, self.manifest.arenas, extra, strict=True)
            memory = [{**areas, "activation": allocate(extra_begin(arena) + n)} for areas, arena, n in arenas]
            self._beside = memory
        return launch_kernel(self.library, self.manifest, tables, memory, self.threads, self.stall_ms, stops)

    def write_extra(self, device: int, data: Bytes) -> None:
        """See `Backend`."""
        begin = extra_begin(self.manifest.arenas[device])
        self._beside[device]["activation"][begin : begin + len(data)] = data

    def clear(self) -> None:
        """See `Backend`."""
        clear(self.memory)

    def read(self, device: int, arena: str, begin: int, end: int) -> Bytes:
        """See `Backend`."""
        return self.memory[device][arena][begin:end].copy()

    def write(self, device: int, arena: str, begin: int, data: Bytes) -> None:
        """See `Backend`."""
        self.memory[device][arena][begin : begin + len(data)] = data

    def close(self) -> None:
        """See `Backend`."""
        self.memory = self._beside = []
