"""The caches of an engine: the buffers that they are in, and which of their rows hold the first positions."""

from __future__ import annotations

from dataclasses import dataclass

from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.folder.operators import NAME, UNREADABLE, read_json
from tilecompile.runtime.folder.tables import Tables
from tilecompile.runtime.format import ARENAS

CACHE = ARENAS.index("cache")


@dataclass(frozen=True)
class CacheBuffer:
    """A cache in a device's cache arena, with a row of `row_bytes` for each position that it has.

    `shard` is (index, count, block) as in `ops/context.py`: of the positions in blocks, one block in `count` is here;
    (0, 1, 1) for all. `drafts` says whether it is one of the MTP layer.
    """

    device: int
    begin: int
    row_bytes: int
    shard: tuple[int, int, int]
    drafts: bool

    def bytes_of(self, positions: int) -> int:
        """How many bytes hold the first `positions` positions; they are the first of the buffer."""
        index, count, block = self.shard
        cycles, rest = divmod(positions, count * block)
        return (cycles * block + min(max(rest - index * block, 0), block)) * self.row_bytes


def cache_buffers(manifest: Manifest, tables: Tables) -> list[CacheBuffer]:
    """The caches of all programs, in the order of their buffers. EngineError if graph.json doesn't state them."""
    graph = read_json(manifest)
    path = manifest.file(NAME)
    try:
        shards: dict[str, tuple[int, int, int]] = {}
        main: set[str] = set()
        for program in graph["programs"]:
            for tensor in program["tensors"]:
                if tensor["role"] == "cache":
                    index, count, block = map(int, tensor.get("shard", (0, 1, 1)))
                    shards[str(tensor["name"])] = index, count, block
                    if program["name"] == manifest.data["first_program"]:
                        main.add(str(tensor["name"]))
        stated = manifest.data["buffers"]
        found = []
        for row, about in zip(tables["buffers"], stated, strict=True):
            if row["arena"] == CACHE:
                name = str(about["tensor"])
                size = int(row["bytes"]) // int(row["rows"])
                found.append(CacheBuffer(int(row["device"]), int(row["offset"]), size, shards[name], name not in main))
    except UNREADABLE as error:
        raise EngineError(f"{path}: its caches are not those of the engine: {type(error).__name__} {error}") from error
    return found
