"""An engine on GPUs: launches of its resident kernel over the memory of a `Node`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime import format as fmt
from tilecompile.runtime.cpu.launch import extra_begin
from tilecompile.runtime.cuda.driver import CudaError
from tilecompile.runtime.cuda.kernel import CudaKernel, Mail
from tilecompile.runtime.cuda.node import Node, Part
from tilecompile.runtime.cuda.options import CudaOptions
from tilecompile.runtime.cuda.sampler import DeviceSampler, Write
from tilecompile.runtime.cuda.share import share_of
from tilecompile.runtime.cuda.tables import controller, device_tables
from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.folder.operators import read_operators
from tilecompile.runtime.folder.tables import Table, Tables
from tilecompile.runtime.progress import Count

Bytes = npt.NDArray[np.uint8]


class CudaBackend:
    """Memory on GPUs, and launches of the resident kernel; see `Backend`. EngineError as `Node` says.

    `threads` is 0: no thread of the host runs bodies.
    """

    threads = 0
    exclusive = True

    def __init__(
        self,
        manifest: Manifest,
        tables: Tables,
        options: CudaOptions,
        stall_ms: int,
        progress: Count | None = None,
    ) -> None:
        self.manifest, self.options, self.stall_ms = manifest, options, stall_ms
        self.drawn = options.random_seed
        self.node = Node(manifest, tables, options, progress)
        self._kernel: CudaKernel | None = None
        self._times: list[int] = []
        self._extra: dict[int, int] = {}
        self._instructions = len(tables["instructions"])

    def launch(self, tables: Tables, stops: Iterable[int] | None = None, extra: Sequence[int] = ()) -> CudaKernel:
        """See `Backend`; activations are shared, since only one kernel runs.

        EngineError if one still runs, or the GPUs can't hold all blocks.
        """
        if self._kernel is not None and not self._kernel.ended:
            raise EngineError(f"{self.manifest.folder}: a kernel runs already, and GPUs hold one only")
        if self.options.share is not None:
            tables = share_of(tables, self.options.share, [o.shared for o in read_operators(self.manifest)])
        held: list[tuple[Part, int]] = []
        manifest = self.manifest
        sizes = manifest.workers, manifest.max_seq_len, manifest.vocab_size
        mail = Mail(self.node.gpus[0], *sizes, manifest.samples)

        def free() -> None:
            for part, address in held:
                part.gpu.attempt("cuMemFree", address)
            mail.free()

        def get(part: Part, size: int, what: str) -> int:
            held.append((part, part.gpu.allocate(size, what)))
            return held[-1][1]

        parts = self.node.parts
        streams = [(part.gpu, part.stream) for part in parts]
        sampler = DeviceSampler(self._write_input(tables), manifest.vocab_size) if manifest.samples else None
        kernel = CudaKernel(mail, tables, streams, self.stall_ms, self._leave, free, sampler)
        try:
            pairs = zip(parts, extra, strict=True) if extra else ()
            self._extra = {part.device: get(part, size, "selections") for part, size in pairs}
            launches = self._records(tables, mail, stops, get)
            for part in parts:
                part.copy().zero(part.at["counters"], 4 * len(tables["events"]))
                part.copy().zero(part.at["board"], fmt.BOARD_BYTES)
            for part, record in zip(parts, launches, strict=True):
                alone = not self.options.on_one_gpu
                part.gpu.launch(
                    part.function, part.blocks, fmt.BLOCK.threads, self.node.shared, [record], part.stream, alone
                )
        except BaseException:
            self._leave()
            kernel.close()
            raise
        self._kernel = kernel
        return kernel

    def _write_input(self, tables: Tables) -> Write:
        """What copies an array to one of the tensors that the loop's bodies sample with."""
        io, buffers = self.manifest.data["io"], tables["buffers"]

        def write(name: str, array: npt.NDArray[Any]) -> None:
            buffer = buffers[io[name]]
            part, at = self._at(int(buffer["device"]), fmt.ARENAS[buffer["arena"]])
            part.copy().write(at + int(buffer["offset"]), array)

        return write

    def _records(self, tables: Tables, mail: Mail, stops: Iterable[int] | None, get: Any) -> list[Table]:
        """The DeviceLaunch of each part, with its tables uploaded; `get(part, size, what)` allocates memory."""
        data, parts, manifest = self.manifest.data, self.node.parts, self.manifest
        programs = manifest.programs
        here = {part.device: part for part in parts}
        spare = 0
        if len(here) < manifest.devices:  # what is looped back is written, and never read
            buffers = tables["buffers"]
            most = int(buffers["bytes"][buffers["arena"] == fmt.ARENAS.index("activation")].max(initial=16))
            spare = get(parts[0], max(most, 4 * len(tables["events"])), "what is looped back")
        places = self._places(tables, here, spare)
        counters = [here[d].at["counters"] if d in here else spare for d in range(manifest.devices)]
        pools = [here[d].at["weight"] if d in here else 0 for d in range(manifest.devices)]
        boards = np.array([here[d].at["board"] if d in here else 0 for d in range(manifest.devices)], np.uint64)
        if len(here) < manifest.devices:
            boards = np.array([part.at["board"] for part in parts], np.uint64)
        ids = np.array([*sorted(set(manifest.eos_token_ids if stops is None else stops)), 0], np.int32)
        sink = controller(tables)
        rows = programs.rows.copy()
        for row, stated in zip(rows, data["programs"], strict=True):
            for name in fmt.LOOP_OUTPUTS:
                row[name] = places[stated["io"][name]]
        self._times, launches = [], []
        for number, part in enumerate(parts):
            made = device_tables(tables, part.device, programs.launched, counters, places, pools)
            arrays: dict[str, npt.NDArray[Any]] = {
                name: getattr(made, name)
                for name in ("streams", "instructions", "operands", "waits", "notifies", "runs")
            }
            arrays |= {"boards": boards, "stops": ids, "programs": rows}
            record = np.zeros(1, fmt.DEVICE_LAUNCH.dtype)
            for name, at in _upload(part, arrays, get).items():
                record[name] = at
            for name in ("mailbox", "status", "tokens", "stalls"):
                record[name] = mail.at[name]
            for name in (*fmt.LOOP_INPUTS, *(("sampling", "counts") if manifest.samples else ())):
                record[name] = places[data["io"][name]]
            if self.options.times:
                size = 16 * self.options.times * len(tables["instructions"])
                self._times.append(get(part, size, "timestamps"))
                part.copy().zero(self._times[-1], size)
                record["times"] = self._times[-1]
            record["device"], record["devices"] = number, len(parts)
            record["first_worker"], record["blocks"] = self.node.first_worker[part.device], part.blocks
            record["program_count"], record["first_program"] = len(programs.rows), programs.first
            record["only_program"], record["controller"] = programs.only, sink
            record["stop_count"], record["vocab"] = len(ids) - 1, manifest.vocab_size
            record["max_seq_len"], record["stall_ms"] = manifest.max_seq_len, self.stall_ms
            record["instruction_count"] = len(tables["instructions"])
            record["latency_ns"] = self.options.latency_ns
            launches.append(record)
        return launches

    def _places(self, tables: Tables, here: dict[int, Part], spare: int) -> npt.NDArray[np.uint64]:
        """Address of each buffer; those of devices that don't run are in `spare`."""
        buffers = tables["buffers"]
        bases = np.zeros((self.manifest.devices, len(fmt.ARENAS)), np.uint64)
        for device, part in here.items():
            bases[device] = [part.at[name] for name in fmt.ARENAS]
        places = bases[buffers["device"], buffers["arena"]] + buffers["offset"]
        activations = buffers["arena"] == fmt.ARENAS.index("activation")
        for device, at in self._extra.items():
            begin = extra_begin(self.manifest.arenas[device])
            beyond = activations & (buffers["device"] == device) & (buffers["offset"] >= begin)
            places[beyond] = np.uint64(at) + buffers["offset"][beyond] - np.uint64(begin)
        places[~np.isin(buffers["device"], list(here))] = spare
        return np.asarray(places, np.uint64)

    def _leave(self) -> None:
        """Makes all blocks end, without the controller."""
        for part in self.node.parts:
            with contextlib.suppress(CudaError):  # after a fault of one GPU the others must still be notified
                part.copy().write(part.at["board"] + fmt.LEAVE_OFFSET, np.ones(1, np.uint32))

    def times(self) -> list[npt.NDArray[np.uint64]]:
        """When instructions began and ended, ns, by device: [rows, instructions, 2]; a step's row is sequence % rows.

        Only of a kernel that takes them (`CudaOptions.cubin`, `times`).
        """
        shape = (self.options.times, self._instructions, 2)
        size = 16 * self.options.times * self._instructions
        return [
            part.copy().read(at, size).view(np.uint64).reshape(shape)
            for part, at in zip(self.node.parts, self._times, strict=True)
        ]

    def write_extra(self, device: int, data: Bytes) -> None:
        """See `Backend`."""
        part, _ = self._at(device, "activation")
        part.copy().write(self._extra[device], data)

    def clear(self) -> None:
        """See `Backend`."""
        self.node.clear()

    def _at(self, device: int, arena: str) -> tuple[Part, int]:
        for part in self.node.parts:
            if part.device == device:
                return part, part.at[arena]
        raise EngineError(f"device {device} doesn't run: only device {self.options.share} does")

    def read(self, device: int, arena: str, begin: int, end: int) -> Bytes:
        """See `Backend`."""
        part, at = self._at(device, arena)
        return part.copy().read(at + begin, end - begin)

    def write(self, device: int, arena: str, begin: int, data: Bytes) -> None:
        """See `Backend`."""
        part, at = self._at(device, arena)
        part.copy().write(at + begin, data)

    def close(self) -> None:
        """See `Backend`."""
        if self._kernel is None or self._kernel.ended:
            self.node.close()


def _upload(part: Part, arrays: dict[str, npt.NDArray[Any]], get: Any) -> dict[str, int]:
    """Copies arrays to the device, one after another; returns their addresses."""
    begin, total = {}, 0
    for name, array in arrays.items():
        begin[name], total = total, total + -(-array.nbytes // 256) * 256
    base = get(part, total, "tables")
    for name, array in arrays.items():
        part.copy().write(base + begin[name], array)
    return {name: base + offset for name, offset in begin.items()}
