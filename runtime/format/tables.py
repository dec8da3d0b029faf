"""The records of an engine's tables."""

from __future__ import annotations

from tilecompile.runtime.format.record import Field, Record

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
        Field("flags", "u2", "bit 0: PREDICATED"),
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
        Field("device", "u4", "device whose memory holds the counter"),
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
        Field("copies", "u4", "consecutive tiles: matrices if gathered, else 1"),
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
