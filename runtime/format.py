"""The program format: the one owner of every record that the compiler writes and a kernel reads.

Each record is described once, field by field, and becomes a numpy dtype here and a C struct in the header that
`c_header` generates (with static assertions on size and offsets). The compiler, the verifier, the emitters and the
runtime all take their layout from this file. All records are little-endian and naturally aligned.

An engine's program is a set of tables, one `.npy` file each (see `TABLES`):

    streams       which slice of `instructions` an agent of a worker runs, in order, for one program
    instructions  one tile each: body, operands, waits, notifies, weight runs
    operands      buffers (plus byte offset) that an instruction's body addresses
    waits         (event, count): the counter must have reached run * count
    notifies      events that the instruction adds one to when it is done
    tape          weight runs in the order in which the streams read them
    regions       what each instruction reads and writes, for the proof; kernels ignore it
    events        one counter each
    buffers       where each buffer lies
    weights       the weight tensors that are streamed, in the order of `weights.tensors` in engine.json
    tiles         which part of which of them each weight tile is, and where it lies, for the proof
    repeats       which rows stand for more than themselves: see below

A GPU's loop reads tables with addresses in the place of indices, which loading makes of these (the Device* records).

A model of many equal layers may be stored short. Then `repeats` names rows of the other tables that are one period of
layers and stand `times` times in a row, and the tables hold at least one more period before and one after them. Rows
that refer to the period before, to their own or to the next one do so in every copy; other references are to the same
rows. Offsets in arenas and pools move along. `repeat.py` has the rule as code: `expand` gives the tables of the whole
program, which is what is proved, what runs and what engine.json describes. Without rows in `repeats` the tables are the
whole program.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FORMAT_VERSION = 7
MAX_TOKENS = 8
"""Largest number of tokens that one step can carry."""

NONE = 0xFFFFFFFF
"""An absent index in a u32 field."""

COMMIT_KIND = 0
"""Task kind of the sink, which every kernel implements in its loop."""

ARENAS = ("activation", "cache", "weight", "io")
"""Memory that a buffer lies in: scratch of one step, state kept over steps, the pool file, the controller's words."""

DTYPES = ("f32", "bf16", "i32", "fp8")
DTYPE_BYTES = {"f32": 4, "bf16": 2, "i32": 4, "fp8": 1}

READ, WRITE = 0, 1

GATED = 1
"""`Instruction.flags`, `DeviceRun.flags`: the body runs only in steps whose logits are wanted."""

CONDITIONAL = 2
"""The same, of a GPU's tables: a run that some steps skip, and an instruction that has one."""

REMOTE = 1
"""Lowest bit of a counter's address in a GPU's tables: other devices notify it, or it is another device's."""

ALIGN = 64
"""Bytes that buffers and tiles are aligned to: a cache line, and the widest vector."""

SCALE_BLOCK = 128
"""Rows and columns of a block of an fp8 matrix that has one f32 scale."""

PANEL = 16
"""Rows that a weight tile stores together: rows of each matrix are padded to whole panels."""


def matrix_bytes(rows: int, cols: int, dtype: str) -> int:
    """Bytes of a weight matrix as a checkpoint has it, with the scales of its blocks if it is fp8."""
    scales = -(-rows // SCALE_BLOCK) * -(-cols // SCALE_BLOCK) * 4 if dtype == "fp8" else 0
    return rows * cols * DTYPE_BYTES[dtype] + scales


def panel_bytes(cols: int, dtype: str) -> int:
    """Bytes of a panel of a weight tile; in fp8 the scale of each block of columns follows, f32."""
    return PANEL * cols * DTYPE_BYTES[dtype] + (-(-cols // SCALE_BLOCK) * 4 if dtype == "fp8" else 0)


LAYOUTS = ("rows", "fragments")
"""How the panels of a weight tile lie: for CPUs column by column (`targets/tiles.py`), for GPUs as the operands of
their matrix instructions (`targets/cuda/fragments.py`)."""

FRAGMENT_BYTES = 512
"""Bytes of a panel that a warp takes at once, 16 a lane: the k-blocks of layout "fragments"."""

FRAGMENT_COLS = {"bf16": 16, "fp8": 32}
"""Columns of a k-block, by the types that layout "fragments" has."""


def scale_count(cols: int, col_begin: int) -> int:
    """Blocks of an fp8 matrix that a panel of `cols` columns from `col_begin` on meets: its scales."""
    return -(-(col_begin % SCALE_BLOCK + cols) // SCALE_BLOCK)


def tile_bytes(panels: int, cols: int, col_begin: int, dtype: str, layout: str) -> int:
    """Bytes of a weight tile of `panels` panels.

    In fragments, panels are whole k-blocks; in fp8 the scales of all panels come first, f32, in whole k-blocks too.
    """
    if layout == "rows":
        return panels * panel_bytes(cols, dtype)
    scales = panels * scale_count(cols, col_begin) * 4 if dtype == "fp8" else 0
    return (panels * -(-cols // FRAGMENT_COLS[dtype]) + -(-scales // FRAGMENT_BYTES)) * FRAGMENT_BYTES


@dataclass(frozen=True)
class Field:
    """One field: numpy type string (optionally with a count), and what it means, with its unit."""

    name: str
    type: str
    meaning: str
    count: int = 1


@dataclass(frozen=True)
class Record:
    """One record: its name in C, its name as a table, its size in bytes, its fields in order."""

    name: str
    size: int
    fields: tuple[Field, ...]

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The numpy dtype of the record, with the C compiler's natural alignment."""
        spec = [(f.name, "<" + f.type, (f.count,)) if f.count > 1 else (f.name, "<" + f.type) for f in self.fields]
        dtype = np.dtype(spec, align=True)
        if dtype.itemsize != self.size:
            raise AssertionError(f"{self.name} is {dtype.itemsize} bytes, stated {self.size}")
        return dtype


STREAM = Record(
    "Stream",
    24,
    (
        Field("program", "u4", "index of the step program"),
        Field("device", "u4", "device that the worker belongs to"),
        Field("worker", "u4", "worker (core or SM), numbered over all devices"),
        Field("agent", "u4", "agent of the worker; 0 computes, others load"),
        Field("begin", "u4", "first instruction"),
        Field("end", "u4", "one past the last instruction"),
    ),
)

INSTRUCTION = Record(
    "Instruction",
    64,
    (
        Field("kind", "u2", "task kind: index into the kernel's bodies"),
        Field("flags", "u2", "bit 0: GATED"),
        Field("op", "u4", "operator instance, for listings and reports"),
        Field("tile", "i4", "tile coordinates within the operator's task grid", 4),
        Field("operand_begin", "u4", "first entry in `operands`"),
        Field("wait_begin", "u4", "first entry in `waits`"),
        Field("notify_begin", "u4", "first entry in `notifies`"),
        Field("tape_begin", "u4", "first entry in `tape`"),
        Field("region_begin", "u4", "first entry in `regions`"),
        Field("prefetch", "u4", "tape entry to hint while waiting, or NONE"),
        Field("wait_count", "u2", "entries in `waits`"),
        Field("notify_count", "u2", "entries in `notifies`"),
        Field("tape_count", "u2", "entries in `tape`"),
        Field("region_count", "u2", "entries in `regions`"),
        Field("operand_count", "u2", "entries in `operands`"),
        Field("reserved", "u2", "reserved, zero", 3),
    ),
)

OPERAND = Record(
    "Operand",
    16,
    (
        Field("buffer", "u4", "index into `buffers`"),
        Field("reserved", "u4", "reserved, zero"),
        Field("offset", "u8", "bytes from the start of the buffer"),
    ),
)

WAIT = Record(
    "Wait",
    8,
    (
        Field("event", "u4", "index into `events`"),
        Field("count", "u4", "notifications a run; in run n (from 1) the counter must reach n * count"),
    ),
)

NOTIFY = Record(
    "Notify",
    8,
    (
        Field("event", "u4", "index into `events`; its counter grows by one"),
        Field("scope", "u4", "0: same device, 1: another device"),
    ),
)

TAPE_RUN = Record(
    "TapeRun",
    32,
    (
        Field("offset", "u8", "bytes from the start of the device's pool"),
        Field("bytes", "u8", "length of one tile"),
        Field("stride", "u8", "bytes from one expert's tile to the next; 0 for a run that is read unconditionally"),
        Field("slot", "i4", "expert slot that chooses the tile, or -1"),
        Field("tile", "u4", "weight tile, numbered over the engine"),
    ),
)

REGION = Record(
    "Region",
    24,
    (
        Field("buffer", "u4", "index into `buffers`"),
        Field("mode", "u4", "0: read, 1: write"),
        Field("row_begin", "u4", "first row of the buffer's [rows, cols] matrix"),
        Field("row_end", "u4", "one past the last row"),
        Field("col_begin", "u4", "first column"),
        Field("col_end", "u4", "one past the last column"),
    ),
)

EVENT = Record(
    "Event",
    16,
    (
        Field("program", "u4", "step program whose runs it counts"),
        Field("device", "u4", "device in whose memory the counter lies"),
        Field("wait_count", "u4", "notifications a run = number of producer tasks"),
        Field("tensor", "u4", "event tensor that the counter is an element of, numbered within the program"),
    ),
)

BUFFER = Record(
    "Buffer",
    40,
    (
        Field("device", "u4", "device"),
        Field("arena", "u4", "index into ARENAS"),
        Field("offset", "u8", "bytes from the start of the arena"),
        Field("bytes", "u8", "size"),
        Field("rows", "u4", "rows of the matrix that regions refer to"),
        Field("cols", "u4", "columns of that matrix"),
        Field("dtype", "u4", "index into DTYPES"),
        Field("reserved", "u4", "reserved, zero"),
    ),
)

WEIGHT = Record(
    "Weight",
    20,
    (
        Field("matrices", "u4", "matrices of the tensor taken as [matrices, rows, cols]"),
        Field("rows", "u4", "rows of each"),
        Field("cols", "u4", "columns of each"),
        Field("dtype", "u4", "index into DTYPES"),
        Field("programs", "u4", "bit p: step program p has an operator that streams it"),
    ),
)

TILE = Record(
    "Tile",
    64,
    (
        Field("device", "u4", "device whose pool holds it"),
        Field("tensor", "u4", "index into `weights`"),
        Field("second", "u4", "tensor of the same shape whose panels alternate with the first's, or NONE"),
        Field("begin", "u4", "first matrix"),
        Field("end", "u4", "one past the last matrix"),
        Field("row_begin", "u4", "first row of each matrix"),
        Field("row_end", "u4", "one past the last row"),
        Field("col_begin", "u4", "first column"),
        Field("cols", "u4", "columns"),
        Field("gathered", "u4", "1: one copy for each matrix, chosen by an expert slot; else 0"),
        Field("copies", "u4", "tiles that lie one after another: matrices if gathered, else 1"),
        Field("layout", "u4", "index into LAYOUTS"),
        Field("offset", "u8", "bytes from the start of the device's pool"),
        Field("bytes", "u8", "length of one copy"),
    ),
)

LINES = ("instructions", "operands", "events", "buffers", "weights", "tiles", "operators", "event_tensors")
"""What `repeats` counts along: rows of tables, operators in engine.json, event tensors (`Event.tensor`)."""

REPEAT = Record(
    "Repeat",
    16,
    (
        Field("line", "u4", "index into LINES; of instructions there is one entry a stream, in their order"),
        Field("begin", "u4", "first row of the period"),
        Field("end", "u4", "one past its last row; may be the first, where it has none"),
        Field("times", "u4", "copies of it in the whole program, the same in all entries"),
    ),
)

STEP = Record(
    "Step",
    64,
    (
        Field("program", "u4", "step program to run"),
        Field("run", "u4", "how often that program has run, this run included (its epoch)"),
        Field("sequence", "u4", "number of the step over all programs, from 1"),
        Field("position", "u4", "position of the first token"),
        Field("tokens", "u4", "tokens in this step, at most MAX_TOKENS"),
        Field("context", "u4", "positions that are valid once the step is done"),
        Field("flags", "u4", "bit 0: the logits of this step are wanted"),
        Field("stop", "u4", "1: no further step follows"),
        Field("ids", "i4", "token ids", MAX_TOKENS),
    ),
)

LAUNCH = Record(
    "Launch",
    160,
    (
        Field("streams", "u8", "address of the streams table"),
        Field("instructions", "u8", "address of the instructions table"),
        Field("operands", "u8", "address of the operands table"),
        Field("waits", "u8", "address of the waits table"),
        Field("notifies", "u8", "address of the notifies table"),
        Field("tape", "u8", "address of the tape table"),
        Field("events", "u8", "address of the events table"),
        Field("buffers", "u8", "address of an array of buffer base addresses"),
        Field("pools", "u8", "address of an array of pool base addresses, one a device"),
        Field("stops", "u8", "address of the stop ids, i4"),
        Field("logits", "u8", "address of the logits buffer [MAX_TOKENS, vocab] f32"),
        Field("stream_count", "u4", "entries in `streams`"),
        Field("event_count", "u4", "entries in `events`"),
        Field("program_count", "u4", "step programs"),
        Field("workers", "u4", "workers over all devices"),
        Field("threads", "u4", "threads to start, 1 to workers"),
        Field("stop_count", "u4", "entries in `stops`"),
        Field("vocab", "u4", "logits a token"),
        Field("max_seq_len", "u4", "positions that the caches hold"),
        Field("next_buffer", "u4", "buffer of the sampled ids, i4 [MAX_TOKENS]"),
        Field("ids_buffer", "u4", "buffer that the controller writes the step's ids to"),
        Field("position_buffer", "u4", "buffer that the controller writes the step's position to"),
        Field("stall_ms", "u4", "time without progress after which the kernel reports a stall"),
        Field("scratch_bytes", "u4", "private memory of a thread for its bodies"),
        Field("reserved", "u4", "reserved, zero", 5),
    ),
)

REQUEST = Record(
    "Request",
    32,
    (
        Field("ids", "u8", "address of the prompt's ids, i4"),
        Field("logits", "u8", "address for the logits of every prompt position, f32 [count, vocab], or 0"),
        Field("count", "u4", "ids in the prompt, at least 1"),
        Field("position", "u4", "position of the first id"),
        Field("max_new", "u4", "tokens to generate at most; 0 to only feed the prompt"),
        Field("reserved", "u4", "reserved, zero"),
    ),
)

STATUS = Record(
    "Status",
    64,
    (
        Field("steps", "u8", "steps done since the launch"),
        Field("launches", "u4", "launches of the kernel, for the engine's life"),
        Field("state", "u4", "0: idle, 1: running a request, 2: stalled, 3: closed"),
        Field("fed", "u4", "prompt ids of the current request that have been fed"),
        Field("generated", "u4", "tokens generated for the current request"),
        Field("reason", "u4", "why it ended: 0 not yet, 1 stop id, 2 max_new, 3 context full, 4 aborted, 5 bad id"),
        Field("stall_worker", "u4", "worker that waited, or NONE where a step ended without its sink; in state 2"),
        Field("stall_instruction", "u4", "instruction that it could not start"),
        Field("stall_event", "u4", "event that it waited for"),
        Field("stall_have", "u4", "counter as read"),
        Field("stall_want", "u4", "value waited for"),
        Field("parked", "u4", "threads that are parked"),
        Field("request", "u4", "on a GPU: number of the request that this is about (`Mailbox.submitted`)"),
        Field("reserved", "u4", "reserved, zero", 2),
    ),
)

DEVICE_STREAM = Record(
    "DeviceStream",
    16,
    (
        Field("begin", "u4", "first instruction of a worker in a program"),
        Field("end", "u4", "one past the last"),
        Field("run_begin", "u4", "first entry in `runs`"),
        Field("run_end", "u4", "one past the last"),
    ),
)

DEVICE_WAIT = Record(
    "DeviceWait",
    16,
    (
        Field("counter", "u8", "address of the event's counter; bit 0: REMOTE"),
        Field("event", "u4", "its number, for reports"),
        Field("count", "u4", "as `Wait.count`"),
    ),
)

DEVICE_NOTIFY = Record(
    "DeviceNotify",
    8,
    (Field("counter", "u8", "address of the event's counter; bit 0: REMOTE"),),
)

DEVICE_RUN = Record(
    "DeviceRun",
    64,
    (
        Field("source", "u8", "address of the weights, of expert 0 in a gathered run"),
        Field("stride", "u8", "bytes from one expert's tile to the next"),
        Field("expert", "u8", "address of the slot's expert, i4; 0 in a run that isn't gathered"),
        Field("counter", "u8", "counter of the event after which the expert is known; bit 0: REMOTE"),
        Field("count", "u4", "as `Wait.count`"),
        Field("event", "u4", "that event's number, for reports"),
        Field("bytes", "u4", "length"),
        Field("flags", "u4", "bit 0: GATED, bit 1: CONDITIONAL"),
        Field("instruction", "u4", "instruction that takes it"),
        Field("hint", "u4", "next run of the stream that isn't conditional, or NONE"),
        Field("reserved", "u4", "reserved, zero", 2),
    ),
)

DEVICE_LAUNCH = Record(
    "DeviceLaunch",
    192,
    (
        Field("streams", "u8", "address of [programs][blocks] DeviceStream"),
        Field("instructions", "u8", "address of the instructions table; flags have CONDITIONAL too"),
        Field("operands", "u8", "address of an array of addresses, one for each row of `operands`"),
        Field("waits", "u8", "address of an array of DeviceWait, one for each row of `waits`"),
        Field("notifies", "u8", "address of an array of DeviceNotify, one for each row of `notifies`"),
        Field("runs", "u8", "address of the DeviceRun of the device's streams"),
        Field("boards", "u8", "address of an array of the addresses of all devices' boards, BOARD_BYTES each, zeroed"),
        Field("mailbox", "u8", "address of the Mailbox, in host memory"),
        Field("status", "u8", "address of the Status, in host memory"),
        Field("tokens", "u8", "address of the generated ids, i4 [max_seq_len + 1], in host memory"),
        Field("stalls", "u8", "address of one Stall a worker of all devices, zeroed, in host memory"),
        Field("stops", "u8", "address of the stop ids, i4"),
        Field("logits", "u8", "address of the logits buffer [MAX_TOKENS, vocab] f32"),
        Field("next", "u8", "address of the sampled ids, i4 [MAX_TOKENS]"),
        Field("ids", "u8", "address that the controller writes the step's ids to"),
        Field("position", "u8", "address that the controller writes the step's position to"),
        Field("times", "u8", "address of the timestamps, if the kernel takes them"),
        Field("device", "u4", "device, from 0"),
        Field("devices", "u4", "devices"),
        Field("first_worker", "u4", "number of the device's first worker"),
        Field("programs", "u4", "step programs"),
        Field("controller", "u4", "worker whose streams have the sinks: it reads the mailbox"),
        Field("stop_count", "u4", "entries in `stops`"),
        Field("vocab", "u4", "logits a token"),
        Field("max_seq_len", "u4", "positions that the caches hold"),
        Field("stall_ms", "u4", "time that a wait may last"),
        Field("instruction_count", "u4", "entries in `instructions`"),
        Field("blocks", "u4", "workers of the device"),
        Field("latency_ns", "u4", "time that is added to waits for other devices, for measurements; else 0"),
        Field("reserved", "u4", "reserved, zero", 2),
    ),
)

MEGAKERNEL, BLOCK_THREADS = "megakernel", 288
"""Name of the resident kernel in a cubin, and the threads of its blocks: 8 warps that run bodies, and the loader's."""

BOARD_BYTES, LEAVE_OFFSET = 256, 192
"""What the controller tells a device, in that device's memory: two Step records, the step's number, and,
at LEAVE_OFFSET, a word that makes all blocks end."""

MAILBOX = Record(
    "Mailbox",
    64,
    (
        Field("submitted", "u4", "requests so far; written after all that describes the last one"),
        Field("abort", "u4", "the request of that number is to end at its next step"),
        Field("stop", "u4", "1: the kernel is to end"),
        Field("reserved", "u4", "reserved, zero"),
        Field("ids", "u8", "as in Request, in host memory"),
        Field("logits", "u8", "as in Request"),
        Field("count", "u4", "as in Request"),
        Field("position", "u4", "as in Request"),
        Field("max_new", "u4", "as in Request"),
        Field("more", "u4", "reserved, zero", 5),
    ),
)

STALL = Record(
    "Stall",
    32,
    (
        Field("waits", "u4", "1: the worker waited when the kernel ended itself"),
        Field("agent", "u4", "0: its bodies, 1: its loader"),
        Field("instruction", "u4", "instruction that it could not start"),
        Field("event", "u4", "event that it waited for; NONE: its bodies waited for the loader"),
        Field("have", "u4", "counter as read"),
        Field("want", "u4", "value waited for"),
        Field("sequence", "u4", "number of the step"),
        Field("reserved", "u4", "reserved, zero"),
    ),
)

FILL_BF16, FILL_F32, FILL_E4M3 = range(3)
"""Number types of `DeviceFill`."""

FILL, FILL_THREADS = "random_fill", 256
"""Name of the kernel that fills memory, a block a DeviceFill, and its threads."""

DEVICE_FILL = Record(
    "DeviceFill",
    32,
    (
        Field("target", "u8", "address of the numbers, a multiple of 16"),
        Field("bytes", "u8", "length, a multiple of 16"),
        Field("type", "u4", "0: bf16, 1: f32, 2: e4m3"),
        Field("stream", "u4", "number that sets these numbers apart from other ones of the same seed"),
        Field("low", "f4", "smallest number"),
        Field("high", "f4", "largest number"),
    ),
)

RECORDS = (
    *(STREAM, INSTRUCTION, OPERAND, WAIT, NOTIFY, TAPE_RUN, REGION, EVENT, BUFFER, WEIGHT, TILE, REPEAT),
    *(STEP, LAUNCH, REQUEST, STATUS),
    *(DEVICE_STREAM, DEVICE_WAIT, DEVICE_NOTIFY, DEVICE_RUN, DEVICE_LAUNCH, MAILBOX, STALL, DEVICE_FILL),
)

TABLES: dict[str, Record] = {
    "streams": STREAM,
    "instructions": INSTRUCTION,
    "operands": OPERAND,
    "waits": WAIT,
    "notifies": NOTIFY,
    "tape": TAPE_RUN,
    "regions": REGION,
    "events": EVENT,
    "buffers": BUFFER,
    "weights": WEIGHT,
    "tiles": TILE,
    "repeats": REPEAT,
}
"""Tables of an engine, each saved as `tables/NAME.npy`."""

_C_TYPES = {"u2": "uint16_t", "u4": "uint32_t", "u8": "uint64_t", "i4": "int32_t", "f4": "float"}


def c_header() -> str:
    """The C header of all records, with static assertions that lock sizes and offsets to the numpy dtypes."""
    out = [
        "// Generated from runtime/format.py: the records of an engine's tables.",
        "#pragma once",
        "#include <cstddef>",
        "#include <cstdint>",
        "",
        f"constexpr uint32_t NONE = 0x{NONE:X}u;",
        f"constexpr uint32_t FORMAT_VERSION = {FORMAT_VERSION};",
        f"constexpr int MAX_TOKENS = {MAX_TOKENS};",
        f"constexpr uint16_t COMMIT_KIND = {COMMIT_KIND};",
        f"constexpr uint32_t GATED = {GATED}, CONDITIONAL = {CONDITIONAL}, REMOTE = {REMOTE};",
        f"constexpr uint32_t FILL_BF16 = {FILL_BF16}, FILL_F32 = {FILL_F32}, FILL_E4M3 = {FILL_E4M3};",
        f"constexpr uint32_t BOARD_BYTES = {BOARD_BYTES}, LEAVE_OFFSET = {LEAVE_OFFSET};",
    ]
    for record in RECORDS:
        out += ["", f"struct {record.name} {{"]
        for f in record.fields:
            array = f"[{f.count}]" if f.count > 1 else ""
            out.append(f"  {_C_TYPES[f.type]} {f.name}{array};  // {f.meaning}")
        out += ["};", f"static_assert(sizeof({record.name}) == {record.size});"]
        offsets = record.dtype.fields
        if offsets is None:
            raise AssertionError(record.name)
        out += [f"static_assert(offsetof({record.name}, {f.name}) == {offsets[f.name][1]});" for f in record.fields]
    return "\n".join(out) + "\n"
