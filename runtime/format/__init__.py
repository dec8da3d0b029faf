"""The program format: the owner of every record, enum and constant that compiler, kernels and runtime share.

Each record is described once, field by field, and becomes a numpy dtype here and a C struct in the header that
`c_header` generates (with static assertions on size and offsets); enums and constants are in that header too. The
compiler, the verifier, the emitters and the runtime all take their layout from this package. All records are
little-endian and naturally aligned.

An engine's program is a set of tables, one `.npy` file each (see `TABLES`):

    streams       which slice of `instructions` an agent of a worker runs, in order, for one program
    instructions  one tile each: body, operands, waits, notifies, weight runs
    operands      buffers (plus byte offset) that an instruction's body addresses
    waits         (event, count): the counter must have reached run * count
    notifies      events that the instruction adds one to when it is done
    tape          weight runs in the order in which the streams read them
    regions       what each instruction reads and writes, constants included, for the proof; kernels ignore it
    events        one counter each
    buffers       where each buffer is stored
    weights       the weight tensors that are streamed, in the order of `weights.tensors` in engine.json
    tiles         which part of which of them each weight tile is, and where it is stored, for the proof
    operators     one for each value of `Instruction.op`: what its tasks have in common, and the weights they stream
    bodies        what a task touches through its operands, by its tile coordinates; operators share bodies
    views         how a body sees each operand: type and strides
    accesses      boxes of those views, bounded by tile coordinates: each is a region of the task
    repeats       which rows stand for more than themselves: see below

The last four before `repeats` are for the proof, which finds in them what instructions and regions must be; kernels
ignore them.

The step programs that those tables hold, and which may follow which, are stated in engine.json (`programs`).

A GPU's loop reads tables with addresses in the place of indices, which loading makes of these (the Device* records).

A model of many equal layers may be stored short. Then `repeats` names rows of the other tables that are one period of
layers and stand `times` times in a row, and the tables hold at least one more period before and one after them. Rows
that refer to the period before, to their own or to the next one do so in every copy; other references are to the same
rows. Offsets in arenas and pools move along. `folder/repeat.py` has the rule as code: `expand` gives the tables of the
whole program, which is what is proved, what runs and what engine.json describes. Without rows in `repeats` the tables
are the whole program.
"""

from __future__ import annotations

from tilecompile.runtime.format.block import (
    BLOCK,
    BODY_TOKENS,
    FILL,
    FILL_THREADS,
    LEAST_SLOTS,
    MEGAKERNEL,
    PARTIAL_BYTES,
    SCRATCH_ALIGN,
    SHARED_BYTES,
    BlockShape,
)
from tilecompile.runtime.format.constants import (
    ALIGN,
    ARENAS,
    AUTO_DRAFTS,
    COMMIT_KIND,
    CONDITIONAL,
    DTYPE_BYTES,
    DTYPES,
    FORMAT_VERSION,
    INTERVAL_BITS,
    KEY_WORDS,
    MAX_DRAFTS,
    MAX_PROGRAMS,
    MAX_TOKENS,
    NEEDS_LOGITS,
    NONE,
    PREDICATED,
    PREFETCH_BYTES,
    READ,
    REMOTE,
    SCORE_KEYS,
    WRITE,
    Reason,
    State,
)
from tilecompile.runtime.format.device import (
    BOARD_BYTES,
    DEVICE_FILL,
    DEVICE_LAUNCH,
    DEVICE_NOTIFY,
    DEVICE_RUN,
    DEVICE_STREAM,
    DEVICE_WAIT,
    FILL_BF16,
    FILL_E4M3,
    FILL_F32,
    LEAVE_OFFSET,
    MAILBOX,
    STALL,
)
from tilecompile.runtime.format.header import RECORDS, block_header, c_header, shared_constants
from tilecompile.runtime.format.launch import LAUNCH, REQUEST, STATUS, STEP
from tilecompile.runtime.format.programs import (
    FIRST_PROGRAM,
    FOLLOWERS,
    LOOP_INPUTS,
    LOOP_OUTPUTS,
    PROGRAM,
    PROGRAMS,
    ProgramSpec,
    ProgramTable,
    program_table,
)
from tilecompile.runtime.format.record import Field, Record
from tilecompile.runtime.format.sampling import (
    BIASED,
    COUNTED,
    MAX_LOGPROBS,
    MAX_STOP_IDS,
    NOT_FINITE_ID,
    NOTHING_ALLOWED_ID,
    RECOMMENDED,
    SAMPLING,
    SAMPLING_INPUTS,
    SAMPLING_WORDS,
)
from tilecompile.runtime.format.tables import (
    ACCESS,
    BODY,
    BUFFER,
    EVENT,
    INSTRUCTION,
    LINES,
    NOTIFY,
    OPERAND,
    OPERATOR,
    REGION,
    REPEAT,
    STREAM,
    TABLES,
    TAPE_RUN,
    TILE,
    VIEW,
    WAIT,
    WEIGHT,
)
from tilecompile.runtime.format.weights import (
    E4M3_MAX,
    FRAGMENT_BYTES,
    FRAGMENT_COLS,
    LAYOUTS,
    PANEL,
    RESIDUES,
    SCALE_BLOCK,
)

__all__ = [
    "ACCESS",
    "ALIGN",
    "ARENAS",
    "AUTO_DRAFTS",
    "BIASED",
    "BLOCK",
    "BOARD_BYTES",
    "BODY",
    "BODY_TOKENS",
    "BUFFER",
    "COMMIT_KIND",
    "CONDITIONAL",
    "COUNTED",
    "DEVICE_FILL",
    "DEVICE_LAUNCH",
    "DEVICE_NOTIFY",
    "DEVICE_RUN",
    "DEVICE_STREAM",
    "DEVICE_WAIT",
    "DTYPES",
    "DTYPE_BYTES",
    "E4M3_MAX",
    "EVENT",
    "FILL",
    "FILL_BF16",
    "FILL_E4M3",
    "FILL_F32",
    "FILL_THREADS",
    "FIRST_PROGRAM",
    "FOLLOWERS",
    "FORMAT_VERSION",
    "FRAGMENT_BYTES",
    "FRAGMENT_COLS",
    "INSTRUCTION",
    "INTERVAL_BITS",
    "KEY_WORDS",
    "LAUNCH",
    "LAYOUTS",
    "LEAST_SLOTS",
    "LEAVE_OFFSET",
    "LINES",
    "LOOP_INPUTS",
    "LOOP_OUTPUTS",
    "MAILBOX",
    "MAX_DRAFTS",
    "MAX_LOGPROBS",
    "MAX_PROGRAMS",
    "MAX_STOP_IDS",
    "MAX_TOKENS",
    "MEGAKERNEL",
    "NEEDS_LOGITS",
    "NONE",
    "NOTHING_ALLOWED_ID",
    "NOTIFY",
    "NOT_FINITE_ID",
    "OPERAND",
    "OPERATOR",
    "PANEL",
    "PARTIAL_BYTES",
    "PREDICATED",
    "PREFETCH_BYTES",
    "PROGRAM",
    "PROGRAMS",
    "READ",
    "RECOMMENDED",
    "RECORDS",
    "REGION",
    "REMOTE",
    "REPEAT",
    "REQUEST",
    "RESIDUES",
    "SAMPLING",
    "SAMPLING_INPUTS",
    "SAMPLING_WORDS",
    "SCALE_BLOCK",
    "SCORE_KEYS",
    "SCRATCH_ALIGN",
    "SHARED_BYTES",
    "STALL",
    "STATUS",
    "STEP",
    "STREAM",
    "TABLES",
    "TAPE_RUN",
    "TILE",
    "VIEW",
    "WAIT",
    "WEIGHT",
    "WRITE",
    "BlockShape",
    "Field",
    "ProgramSpec",
    "ProgramTable",
    "Reason",
    "Record",
    "State",
    "block_header",
    "c_header",
    "program_table",
    "shared_constants",
]
