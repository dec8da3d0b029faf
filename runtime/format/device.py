"""The records of a kernel on GPUs: what loading makes of an engine's tables, launches, the mailbox, stalls."""

from __future__ import annotations

from tilecompile.runtime.format.record import Field, Record

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
        Field("flags", "u4", "bit 0: PREDICATED, bit 1: CONDITIONAL"),
        Field("instruction", "u4", "instruction that takes it"),
        Field("hint", "u4", "next run of the stream that isn't conditional, or NONE"),
        Field("reserved", "u4", "reserved, zero", 2),
    ),
)

DEVICE_LAUNCH = Record(
    "DeviceLaunch",
    200,
    (
        Field("streams", "u8", "address of [program_count][blocks] DeviceStream, empty ones of programs not launched"),
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
        Field("ids", "u8", "address that the controller writes the step's ids to"),
        Field("position", "u8", "address that the controller writes the step's position to"),
        Field("sampling", "u8", "address of the request's Sampling, or 0 in a kernel that decodes greedily"),
        Field("counts", "u8", "address of the counted ids, i4 [vocab], or 0"),
        Field("times", "u8", "address of the timestamps, if the kernel takes them"),
        Field("programs", "u8", "address of the StepProgram table"),
        Field("device", "u4", "device, from 0"),
        Field("devices", "u4", "devices"),
        Field("first_worker", "u4", "number of the device's first worker"),
        Field("program_count", "u4", "entries in `programs`"),
        Field("first_program", "u4", "program that requests begin with"),
        Field("only_program", "u4", "the one program that is launched, or NONE where there are several"),
        Field("controller", "u4", "worker whose streams have the sinks: it reads the mailbox"),
        Field("stop_count", "u4", "entries in `stops`"),
        Field("vocab", "u4", "logits a token"),
        Field("max_seq_len", "u4", "positions that the caches hold"),
        Field("stall_ms", "u4", "time that a wait may last"),
        Field("instruction_count", "u4", "entries in `instructions`"),
        Field("blocks", "u4", "workers of the device"),
        Field("latency_ns", "u4", "time that is added to waits for other devices, for measurements; else 0"),
    ),
)

BOARD_BYTES, LEAVE_OFFSET = 192, 128
"""What the controller publishes to a device, in that device's memory: two Step records, the step's number, and,
at LEAVE_OFFSET, a word that makes all blocks end."""

MAILBOX = Record(
    "Mailbox",
    88,
    (
        Field("submitted", "u4", "requests so far; written after all that describes the last one"),
        Field("abort", "u4", "the request of that number is to end at its next step"),
        Field("stop", "u4", "1: the kernel is to end"),
        Field("allowed", "u4", "the request that has paused `Status.pauses` times goes on once this is as many"),
        Field("ids", "u8", "as in Request, in host memory"),
        Field("logits", "u8", "as in Request"),
        Field("logprobs", "u8", "as in Request"),
        Field("script", "u8", "as in Request"),
        Field("count", "u4", "as in Request"),
        Field("position", "u4", "as in Request"),
        Field("max_new", "u4", "as in Request"),
        Field("drafts", "u4", "as in Request"),
        Field("logprob_count", "u4", "as in Request"),
        Field("samples", "u4", "1: the stop ids are those of its Sampling; 0: the launch's"),
        Field("masks", "u4", "1: it pauses after each token, until the host has written the next mask"),
        Field("counted", "u4", "1: `counts` are kept; the host has counted the prompt"),
        Field("text_begin", "u4", "as in Sampling"),
        Field("stop_count", "u4", "as in Sampling"),
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

DEVICE_RECORDS: tuple[Record, ...] = (
    *(DEVICE_STREAM, DEVICE_WAIT, DEVICE_NOTIFY, DEVICE_RUN, DEVICE_LAUNCH),
    *(MAILBOX, STALL, DEVICE_FILL),
)
