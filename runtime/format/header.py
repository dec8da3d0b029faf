"""The C headers that kernels are built with: all records, enums and constants that C and Python share."""

from __future__ import annotations

from enum import IntEnum

from tilecompile.runtime.format import block, constants, device, sampling, weights
from tilecompile.runtime.format.block import BLOCK, LEAST_SLOTS, SCRATCH_ALIGN, BlockShape
from tilecompile.runtime.format.device import DEVICE_RECORDS
from tilecompile.runtime.format.launch import LAUNCH, REQUEST, STATUS, STEP
from tilecompile.runtime.format.programs import PROGRAM
from tilecompile.runtime.format.record import Record
from tilecompile.runtime.format.sampling import SAMPLING
from tilecompile.runtime.format.tables import TABLES

RECORDS: tuple[Record, ...] = (*TABLES.values(), PROGRAM, STEP, LAUNCH, REQUEST, SAMPLING, STATUS, *DEVICE_RECORDS)

ENUMS: tuple[type[IntEnum], ...] = (constants.State, constants.Reason)

CONSTANTS = {
    **dict.fromkeys(
        ("NONE", "AUTO_DRAFTS", "FORMAT_VERSION", "READ", "WRITE", "PREDICATED", "CONDITIONAL", "NEEDS_LOGITS"),
        "uint32_t",
    ),
    **dict.fromkeys(("REMOTE", "BOARD_BYTES", "LEAVE_OFFSET"), "uint32_t"),
    **dict.fromkeys(("FILL_BF16", "FILL_F32", "FILL_E4M3"), "uint32_t"),
    **dict.fromkeys(("COUNTED", "BIASED"), "uint32_t"),
    **dict.fromkeys(("NOT_FINITE_ID", "NOTHING_ALLOWED_ID"), "int32_t"),
    "COMMIT_KIND": "uint16_t",
    **dict.fromkeys(
        (
            "MAX_TOKENS",
            "BODY_TOKENS",
            "MAX_PROGRAMS",
            "MAX_DRAFTS",
            "KEY_WORDS",
            "INTERVAL_BITS",
            "SCORE_KEYS",
            "MAX_STOP_IDS",
        ),
        "int",
    ),
    **dict.fromkeys(("PREFETCH_BYTES", "PANEL", "SCALE_BLOCK", "FRAGMENT_BYTES", "RESIDUES", "PARTIAL_BYTES"), "int"),
}
"""The constants that C has too, and their types there."""

_C_TYPES = {"u2": "uint16_t", "u4": "uint32_t", "u8": "uint64_t", "i4": "int32_t", "f4": "float", "f8": "double"}


def shared_constants() -> dict[str, int]:
    """The value of each of CONSTANTS, and of FRAGMENT_COLS by type."""
    known = {**vars(constants), **vars(weights), **vars(block), **vars(device), **vars(sampling)}
    cols = {f"FRAGMENT_COLS_{dtype.upper()}": n for dtype, n in weights.FRAGMENT_COLS.items()}
    return {name: known[name] for name in CONSTANTS} | cols


def c_header() -> str:
    """The C header of all records, enums and constants.

    Static assertions hold sizes and offsets of the records to those of their numpy dtypes.
    """
    out = [
        "// Generated from runtime/format: the records, enums and constants that kernels share with the runtime.",
        "#pragma once",
        "#include <cstddef>",
        "#include <cstdint>",
        "",
    ]
    for name, value in shared_constants().items():
        text = f"0x{value:X}u" if value > 1 << 31 else str(value)
        out.append(f"constexpr {CONSTANTS.get(name, 'int')} {name} = {text};")
    for enum in ENUMS:
        members = ", ".join(f"{member.name} = {member.value}" for member in enum)
        out.append(f"enum {enum.__name__} : uint32_t {{ {members} }};")
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


def block_header(shape: BlockShape = BLOCK) -> str:
    """The C header of a block's shape, in the GPU kernel's namespace. ValueError if it has no room for the ring."""
    if shape.slots < LEAST_SLOTS:
        raise ValueError(f"{shape} has room for {shape.slots} slots, want {LEAST_SLOTS}")
    constants_of = {
        "LANES": ("int", shape.lanes, "threads that a warp runs in step"),
        "CONSUMER_WARPS": ("int", shape.warps, "warps that run bodies"),
        "CONSUMERS": ("int", shape.body_threads, "threads that run bodies"),
        "THREADS": ("int", shape.threads, "and a warp that loads"),
        "SHARED_BYTES": ("uint32_t", shape.shared_bytes, "shared memory of the block"),
        "FRONT_BYTES": ("uint32_t", shape.front_bytes, "of it, for the loop: `Block`"),
        "SCRATCH_BYTES": ("uint32_t", shape.scratch, "behind it, for bodies"),
        "SCRATCH_ALIGN": ("int", SCRATCH_ALIGN, "bytes that they are aligned to"),
        "SLOT": ("uint32_t", shape.slot_bytes, "bytes of a slot of the ring"),
        "STAGES": ("int", shape.slots, "slots of the ring"),
        "HINT_BYTES": ("uint32_t", shape.hint_bytes, "of the next weights, fetched into L2 while the loader waits"),
    }
    lines = [f"constexpr {kind} {name} = {value};  // {what}" for name, (kind, value, what) in constants_of.items()]
    return "\n".join(["namespace tc {\n", *lines, "\n}  // namespace tc", ""])
