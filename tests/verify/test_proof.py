"""Single facts of the proof: agents, memory, tiles and tapes; and `tilecompile verify` on an engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from support import damage
from support.small import glm5_program
from support.table_tools import Parts, changed, put_together, take_apart
from tilecompile.cli.app import app
from tilecompile.ir.tiling import PANEL
from tilecompile.runtime import format as fmt
from tilecompile.verify.proof import Memory, Proof, VerifyError, by_layer, verify

WEIGHT = fmt.ARENAS.index("weight")


def sizes() -> np.ndarray:
    """Bytes of the arenas of the small model."""
    program = glm5_program(3)
    return np.array([[{**program.arena_bytes[0], "weight": program.pool_bytes[0]}[a] for a in fmt.ARENAS]], np.int64)


def prove(parts: Parts, memory: Memory | None = None) -> Proof:
    program = glm5_program(3)
    names = [b.tensor.name for b in program.buffers]
    return verify(put_together(parts), program.operators, memory, names, program.weights, stated=False)


def refused(parts: Parts, memory: Memory | None = None) -> str:
    with pytest.raises(VerifyError) as caught:
        prove(parts, memory)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def parts() -> Parts:
    return changed(take_apart(glm5_program(3).tables))


def test_the_format_and_the_compiler_have_the_same_panel() -> None:
    assert fmt.PANEL == PANEL


def test_the_proof_lists_what_each_program_reads(parts: Parts) -> None:
    proof = prove(parts, Memory(sizes()))
    decode, draft = proof.programs
    assert by_layer(decode.unread) == [f"model.layers.2.* ({len(decode.unread)})"]
    assert {name.split(".")[2] for name in draft.unread if name.startswith("model.layers.")} == {"0", "1"}
    assert "model.norm.weight" in draft.unread
    assert (decode.slots, len(decode.gathered), draft.slots, len(draft.gathered)) == (2, 3, 2, 3)
    assert decode.weights + len(decode.gathered) + draft.weights + len(draft.gathered) > 30
    assert proof.checks == proof.edges + proof.pairs + proof.spans + proof.runs
    assert "draft" not in str(proof)
    assert "program 1: reads" in str(proof)


def test_a_second_agent_is_a_stream_of_its_own(parts: Parts) -> None:
    """A worker's instructions on two agents: nothing but events orders them."""
    stream = parts.of(0)[0]
    loader = type(stream)(0, 0, stream.worker, 1, stream.instructions[:1])
    stream.instructions = stream.instructions[1:]
    parts.streams.append(loader)
    assert "missing edge" in refused(parts) or "not all of it written before" in refused(parts)
    event = len(parts.events)
    parts.events.append((0, 0, 1, 0))
    loader.instructions[0].notifies.append((event, 0))
    stream.instructions[0].waits.append((event, 1))
    prove(parts)


def test_a_second_stream_of_an_agent_is_refused(parts: Parts) -> None:
    first = parts.of(0)[0]
    parts.streams.append(type(first)(0, 0, first.worker, 0, [first.instructions.pop()]))
    assert refused(parts) == "program 0 has two streams for agent 0 of worker 0, want 1"


def test_races_name_both_tasks_the_tensor_and_the_edge(parts: Parts) -> None:
    for ins in parts.instructions(0):
        ins.waits = []
    text = refused(parts)
    assert text.count("instruction ") >= 2
    stream = parts.of(1)[0]
    write = next(i for i in stream.instructions if any(r[1] == fmt.WRITE for r in i.regions))
    region = next(r for r in write.regions if r[1] == fmt.WRITE)
    parts = changed(take_apart(glm5_program(3).tables))
    parts.of(1)[1].instructions[0].regions.append(region)
    name = glm5_program(3).buffers[region[0]].tensor.name
    text = refused(parts)
    assert f"{name} (buffer {region[0]}) [" in text
    assert "no edge orders them (missing edge: " in text


def test_buffers_beyond_the_arenas_or_misaligned_are_refused(parts: Parts) -> None:
    arenas = sizes()
    assert refused(parts, Memory(arenas, int(arenas.sum()) - 1)).endswith(f"the limit is {arenas.sum() - 1}")
    for arena, name in enumerate(fmt.ARENAS):
        small = arenas.copy()
        small[0, arena] = 64
        assert f"in arena {name} of device 0, which has 64 bytes" in refused(parts, Memory(small))
    b = parts.buffers[0]
    parts.buffers[0] = (*b[:2], b[2] + 4, *b[3:])
    assert "not at a multiple of 64" in refused(parts)
    parts.buffers[0] = (*b[:3], b[3] - 4, *b[4:])
    assert f"has {b[3] - 4} bytes for a matrix of {b[3]}" in refused(parts)


def test_scratch_memory_is_shared_by_programs_only(parts: Parts) -> None:
    """A buffer of the other program may be in the same place, one of the same program may not."""
    scratch: list[list[int]] = []
    for program in (0, 1):
        used = {o[0] for i in parts.instructions(program) for o in i.operands}
        scratch.append(sorted(b for b in used if fmt.ARENAS[parts.buffers[b][1]] == "activation"))
    offset = 0
    for b in scratch[1]:  # the draft program from the start of the arena
        parts.buffers[b] = (*parts.buffers[b][:2], offset, *parts.buffers[b][3:])
        offset += -(-parts.buffers[b][3] // 64) * 64
    prove(parts)
    a, b = scratch[0][:2]
    parts.buffers[b] = (*parts.buffers[b][:2], parts.buffers[a][2], *parts.buffers[b][3:])
    assert "overlap in arena activation of device 0 of program 0" in refused(parts)


def change(rows: list[tuple[int, ...]], index: int, field: int, value: int) -> None:
    rows[index] = (*rows[index][:field], value, *rows[index][field + 1 :])


FIELDS = [f.name for f in fmt.TILE.fields]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("tensor", 99, "names weights 99 of"),
        ("end", 9, "holds rows 0:"),
        ("row_end", 1000, "the tensor has"),
        ("cols", 8, "its rows take 1 x"),
        ("col_begin", 999, "has columns 999:"),
        ("copies", 2, "its rows take 1 x"),
        ("bytes", 64, "its rows take 1 x"),
        ("offset", 4, "not at a multiple of 64"),
        ("second", 0, "are not two of one shape and type"),
    ],
)
def test_tiles_with_wrong_fields_are_refused(parts: Parts, field: str, value: int, words: str) -> None:
    change(parts.tiles, 0, FIELDS.index(field), value)
    assert words in refused(parts)


def test_overlapping_tiles_are_refused(parts: Parts) -> None:
    change(parts.tiles, 1, FIELDS.index("offset"), parts.tiles[0][FIELDS.index("offset")])
    assert "overlap in arena weight" in refused(parts)
    parts = changed(take_apart(glm5_program(3).tables))
    constant = next(k for k, b in enumerate(parts.buffers) if b[1] == WEIGHT)
    change(parts.buffers, constant, 2, parts.tiles[0][FIELDS.index("offset")])
    assert "overlap in arena weight" in refused(parts)


@pytest.mark.parametrize("gathered", [False, True])
def test_tapes_with_wrong_runs_are_refused(gathered: bool) -> None:
    def first(slot: int | None = None) -> tuple[Parts, list[tuple[int, ...]], int]:
        parts = changed(take_apart(glm5_program(3).tables))
        for i in parts.instructions(0):
            for k, run in enumerate(i.tape):
                if (run[3] >= 0) == gathered and slot in (None, run[3]):
                    return parts, i.tape, k
        raise AssertionError

    for field, value in ((0, 64 * 1000), (1, 1), (2, 7), (3, -1 if gathered else 0), (3, -2)):
        parts, tape, k = first()
        change(tape, k, field, value)
        assert "it is on device 0 at" in refused(parts)
    parts, tape, k = first()
    tape.append(tape[k])
    assert "reads too, want once" in refused(parts)
    parts, tape, k = first()
    tape.pop(k)
    assert "read 0 times, want 1" in refused(parts) or "no instruction reads it" in refused(parts)
    if gathered:
        parts, tape, k = first(1)
        change(tape, k, 3, 0)
        assert "reads too, want once" in refused(parts)
        parts, tape, k = first(1)
        change(tape, k, 3, 2)
        assert "read 0 times, want 1" in refused(parts)


def test_a_streamed_tensor_that_no_tape_reads_is_refused(parts: Parts) -> None:
    """No tape of the program has the tensor's tiles, though an operator streams it."""
    tiles = {k for k, t in enumerate(parts.tiles) if t[1] == 0}
    for i in parts.instructions(0):
        i.tape = [r for r in i.tape if r[4] not in tiles]
    assert "is streamed by operators of program 0, but no instruction reads it" in refused(parts)


# --- the command ----------------------------------------------------------------------------------------------------


def run(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["verify", *args])
    return result.exit_code, result.stdout, result.stderr


def test_verify_states_what_it_has_proved(tiny: Path) -> None:
    code, out, err = run(str(tiny), "--json")
    assert (code, err) == (0, "")
    about = json.loads(out)
    manifest = json.loads((tiny / "engine.json").read_text())
    assert about["ok"] is True
    assert about["tasks"] == sum(p["tasks"] for p in manifest["programs"])
    assert about["edges"] == sum(p["edges"] for p in manifest["programs"]) > 0
    assert about["checks"] > about["edges"]
    assert about["files"] == len(manifest["files"])
    assert [p["name"] for p in about["programs"]] == ["decode", "verify", "prefill", "extend", "draft"]
    assert all(name.startswith("model.layers.2.") for name in about["programs"][0]["not_read"])
    assert about["seconds"] >= about["proof_seconds"] > 0
    code, out, err = run(str(tiny))
    assert (code, err) == (0, "")
    for words in ("files of", f"{about['tasks']} tasks, {about['edges']} edges, {about['checks']} checks", "draft: "):
        assert words in out
    assert "doesn't read: model.layers.2.*" in out


def engine_with(tiny: Path, folder: Path, table: str, how: Callable[[np.ndarray], None]) -> str:
    """The error of `verify` on a copy of the engine with another table; its hashes agree and it names no kernel."""
    copy = damage.copy(tiny, folder / "copy")
    damage.edit_table(copy, table, how)
    (copy / "kernel.so").unlink()
    damage.edit_manifest(copy, lambda data: data["files"].pop("kernel.so"))
    code, out, err = run(str(copy))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_verify_refuses_a_wrong_schedule(tiny: Path, tmp_path: Path) -> None:
    def raised(waits: np.ndarray) -> None:
        waits["count"][0] += 1

    text = engine_with(tiny, tmp_path, "waits", raised)
    assert "the schedule is wrong: instruction " in text
    assert "notifications of event" in text


def test_verify_refuses_a_doubled_tile(tiny: Path, tmp_path: Path) -> None:
    def doubled(tape: np.ndarray) -> None:
        whole = np.flatnonzero(tape["slot"] < 0)
        tape[whole[1]] = tape[whole[0]]

    assert "weight in program 0" in engine_with(tiny, tmp_path, "tape", doubled)


def test_verify_checks_the_weights(tiny: Path, tmp_path: Path) -> None:
    copy = damage.copy(tiny, tmp_path / "copy")
    damage.flip(copy / "weights" / "device0.bin", 1000)
    code, out, err = run(str(copy))
    assert (code, out) == (2, "")
    assert "weights/device0.bin" in err


def test_help_has_an_example() -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "tilecompile verify tiny.engine --json" in out
