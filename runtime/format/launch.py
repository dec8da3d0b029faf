"""The records that a kernel and its host share: a step, a launch, a request, a state."""

from __future__ import annotations

from tilecompile.runtime.format.constants import MAX_DRAFTS, MAX_PROGRAMS
from tilecompile.runtime.format.record import Field, Record

STEP = Record(
    "Step",
    32,
    (
        Field("program", "u4", "step program to run; on a GPU NONE: the kernel ends"),
        Field("run", "u4", "how often that program has run, this run included (its epoch)"),
        Field("sequence", "u4", "number of the step over all programs, from 1"),
        Field("position", "u4", "position of the first token"),
        Field("tokens", "u4", "tokens in this step, at most MAX_TOKENS"),
        Field("context", "u4", "positions that are valid once the step is done"),
        Field("flags", "u4", "bit 0: NEEDS_LOGITS"),
        Field("follower", "u4", "on a GPU: program of the next step if that is known already, or NONE"),
    ),
)

LAUNCH = Record(
    "Launch",
    152,
    (
        Field("streams", "u8", "address of the streams of the programs that are launched"),
        Field("instructions", "u8", "address of the instructions table"),
        Field("operands", "u8", "address of the operands table"),
        Field("waits", "u8", "address of the waits table"),
        Field("notifies", "u8", "address of the notifies table"),
        Field("tape", "u8", "address of the tape table"),
        Field("events", "u8", "address of the events table"),
        Field("buffers", "u8", "address of an array of buffer base addresses"),
        Field("pools", "u8", "address of an array of pool base addresses, one a device"),
        Field("stops", "u8", "address of the stop ids, i4"),
        Field("programs", "u8", "address of the StepProgram table"),
        Field("stream_count", "u4", "entries in `streams`"),
        Field("event_count", "u4", "entries in `events`"),
        Field("program_count", "u4", "entries in `programs`"),
        Field("first_program", "u4", "program that requests begin with"),
        Field("workers", "u4", "workers over all devices"),
        Field("threads", "u4", "threads to start, 1 to workers"),
        Field("stop_count", "u4", "entries in `stops`"),
        Field("vocab", "u4", "logits a token"),
        Field("max_seq_len", "u4", "positions that the caches hold"),
        Field("ids_buffer", "u4", "buffer that the controller writes the step's ids to"),
        Field("position_buffer", "u4", "buffer that the controller writes the step's position to"),
        Field("stall_ms", "u4", "time without progress after which the kernel reports a stall"),
        Field("scratch_bytes", "u4", "private memory of a thread for its bodies"),
        Field("sampling_buffer", "u4", "buffer of a request's Sampling, or NONE in a kernel that decodes greedily"),
        Field("bias_buffer", "u4", "buffer of biases, f4 [vocab], or NONE"),
        Field("counts_buffer", "u4", "buffer of counted ids, i4 [vocab], or NONE"),
    ),
)

REQUEST = Record(
    "Request",
    96,
    (
        Field("ids", "u8", "address of the prompt's ids, i4"),
        Field("logits", "u8", "address for the logits of every prompt position, f32 [count, vocab], or 0"),
        Field("sampling", "u8", "address of its Sampling, or 0: greedily, with the launch's stop ids"),
        Field("before", "u8", "address of the ids before `position`, as many, i4; read only where ids are counted"),
        Field("bias_ids", "u8", "address of the ids that have a bias, i4"),
        Field("biases", "u8", "address of their biases, f4"),
        Field("allowed", "u8", "address of bits [vocab]: ids that can come first; 0 without a mask before each token"),
        Field("logprobs", "u8", "address for each token's log-probabilities, 1 + 2 logprob_count words; or 0"),
        Field("script", "u8", "address of ids that take the place of drafts, by the number of the token, i4; or 0"),
        Field("count", "u4", "ids in the prompt, at least 1"),
        Field("position", "u4", "position of the first id"),
        Field("max_new", "u4", "tokens to generate at most; 0 to only feed the prompt"),
        Field("drafts", "u4", "tokens to draft in each round of speculation at most; 0: none; or AUTO_DRAFTS"),
        Field("bias_count", "u4", "entries in `bias_ids`"),
        Field("logprob_count", "u4", "likeliest ids that come with each token's log-probability"),
    ),
)

STATUS = Record(
    "Status",
    152,
    (
        Field("steps", "u8", "steps done since the launch"),
        Field("launches", "u4", "launches of the kernel, for the engine's life"),
        Field("state", "u4", "State"),
        Field("fed", "u4", "prompt ids of the current request that have been fed"),
        Field("generated", "u4", "tokens generated for the current request"),
        Field("reason", "u4", "Reason: why it ended, or that it hasn't"),
        Field("stall_worker", "u4", "worker that waited, or NONE where a step ended without its sink; if STALLED"),
        Field("stall_instruction", "u4", "instruction that it could not start"),
        Field("stall_event", "u4", "event that it waited for"),
        Field("stall_have", "u4", "counter as read"),
        Field("stall_want", "u4", "value waited for"),
        Field("parked", "u4", "threads that are parked"),
        Field("request", "u4", "on a GPU: number of the request that this is about (`Mailbox.submitted`)"),
        Field("program_steps", "u4", "steps of the current request, by program", MAX_PROGRAMS),
        Field("proposed", "u4", "how often draft i of a round was verified, in the current request", MAX_DRAFTS),
        Field("accepted", "u4", "how often it was accepted", MAX_DRAFTS),
        Field("extended", "u4", "positions that the MTP layer's caches hold, if the request drafts"),
        Field("pauses", "u4", "on a GPU: how often requests have paused since the launch"),
    ),
)
