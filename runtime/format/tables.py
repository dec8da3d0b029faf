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
        Field("rows", "u4", "rows of it: the most tokens of a step that the operator works on, if these are its rows"),
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

OPERATOR = Record(
    "TaskOperator",
    108,
    (
        Field("program", "u4", "step program that it belongs to"),
        Field("device", "u4", "device whose workers run its tasks"),
        Field("kind", "u2", "task kind of its tasks"),
        Field("flags", "u2", "flags of its tasks"),
        Field("body", "u4", "index into `bodies`: what its tasks touch"),
        Field("operand_begin", "u4", "first entry in `operands`, the same for all its tasks"),
        Field("runs", "u4", "weight runs of a task"),
        Field("weight", "u4", "index into `weights` of the tensor that they are of, or NONE"),
        Field("second", "u4", "tensor whose panels alternate with it, or NONE"),
        Field("tile", "i4", "tile coordinates of all its tasks, where they don't bound what a task touches", 4),
        Field("at", "u4", "coordinates that runs are bounded by, or NONE: slot of the first, matrices, rows", 5),
        Field("by", "i4", "what each is multiplied by", 5),
        Field("add", "i4", "what is added to each; the next run is of the next slot", 5),
    ),
)

BODY = Record(
    "TaskBody",
    20,
    (
        Field("view_begin", "u4", "first entry in `views`, one an operand"),
        Field("view_count", "u4", "entries in `views`"),
        Field("access_begin", "u4", "first entry in `accesses`, one a region"),
        Field("access_count", "u4", "entries in `accesses`"),
        Field("format", "u4", "format of the weights that it takes, as in `weights`, or NONE"),
    ),
)

VIEW = Record(
    "OperandView",
    28,
    (
        Field("dtype", "u4", "index into DTYPES"),
        Field("arena", "u4", "index into ARENAS: what is kept over steps, and what is written anew"),
        Field("rows", "u4", "size of dimension 0, which is the rows of the buffer"),
        Field("stride", "u4", "elements from one index of each dimension to the next; 0 where it has no more", 4),
    ),
)

ACCESS = Record(
    "TaskAccess",
    112,
    (
        Field("operand", "u4", "number of the operand"),
        Field("mode", "u4", "0: read, 1: write"),
        Field("item", "u4", "the region is of this element of the range in dimension 1 alone, if any, or NONE"),
        Field("reserved", "u4", "reserved, zero"),
        Field("at", "u4", "coordinates that bound a box of the view, or NONE: begin and end of each dimension", 8),
        Field("by", "i4", "what each is multiplied by", 8),
        Field("add", "i4", "what is added to each", 8),
    ),
)

LINES = ("instructions", "operands", "events", "buffers", "weights", "tiles", "operators", "event_tensors")
"""What `repeats` counts along: rows of tables, and event tensors (`Event.tensor`)."""

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
    "operators": OPERATOR,
    "bodies": BODY,
    "views": VIEW,
    "accesses": ACCESS,
    "repeats": REPEAT,
}
"""Tables of an engine, each saved as `tables/NAME.npy`."""
