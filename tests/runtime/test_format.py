"""The program format: numpy and C agree on every record, and tables survive a file without pickle."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tilecompile.runtime import format as fmt
from tilecompile.targets.cpu.build import find_compiler


def test_sizes_and_offsets_hold_in_c(tmp_path: Path) -> None:
    """The header compiles with its static assertions, and a program prints the offsets that numpy has."""
    lines = []
    want = []
    for record in fmt.RECORDS:
        fields = record.dtype.fields
        assert fields is not None
        lines.append(f'printf("{record.name} %zu\\n", sizeof({record.name}));')
        want.append(f"{record.name} {record.dtype.itemsize}")
        for f in record.fields:
            size = f"sizeof({record.name}::{f.name})"
            lines.append(f'printf("{f.name} %zu %zu\\n", offsetof({record.name}, {f.name}), {size});')
            want.append(f"{f.name} {fields[f.name][1]} {fields[f.name][0].itemsize}")
    source = tmp_path / "format.cpp"
    header = fmt.c_header().replace("#pragma once\n", "")
    source.write_text(header + "#include <cstdio>\nint main() {\n" + "\n".join(lines) + "\n}\n")
    command = [find_compiler(), "-std=c++20", "-Wall", "-Wextra", "-Werror", "-o", str(tmp_path / "out"), str(source)]
    subprocess.run(command, check=True)
    got = subprocess.run([str(tmp_path / "out")], check=True, capture_output=True, text=True).stdout.splitlines()
    assert got == want


def test_a_wrong_layout_does_not_compile(tmp_path: Path) -> None:
    source = tmp_path / "wrong.cpp"
    header = fmt.c_header()
    moved = header.replace("  uint32_t device;", "  uint64_t device;", 1)
    assert moved != header
    source.write_text(moved)
    command = [find_compiler(), "-std=c++20", "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "static assertion failed" in done.stderr


@pytest.mark.parametrize("record", fmt.RECORDS, ids=lambda r: r.name)
def test_records_have_no_holes(record: fmt.Record) -> None:
    """Every byte belongs to a field, so that equal records have equal bytes (hashes, comparisons)."""
    fields = record.dtype.fields
    assert fields is not None
    covered = sum(dtype.itemsize for dtype, *_ in fields.values())
    assert covered == record.size
    assert all(offset % min(8, dtype.base.itemsize) == 0 for dtype, offset, *_ in fields.values())
    assert len({f.name for f in record.fields}) == len(record.fields)
    assert all(f.meaning for f in record.fields)


def test_instructions_fit_a_cache_line() -> None:
    assert fmt.INSTRUCTION.size <= 64


def stated(*names: str, **changes: object) -> list[dict[str, object]]:
    """Entries of engine.json for programs that all lead to themselves; `changes` are those of the first one."""
    entry = fmt.PROGRAMS["decode"].stated(2, ["decode"])
    keys = ("on_prompt", "on_single", "on_every", "on_token")
    return [{**entry, "name": n, **dict.fromkeys(keys, n), **(changes if n == names[0] else {})} for n in names]


def engine(*names: str, tokens: int = 4, **changes: dict[str, object]) -> list[dict[str, object]]:
    """The entries of an engine with some of the usual programs; `changes` by program."""
    sizes = {"decode": 1, "draft": 1}
    entries = [fmt.PROGRAMS[n].stated(sizes.get(n, tokens), names) for n in names]
    return [{**entry, **changes.get(str(entry["name"]), {})} for entry in entries]


ALL = ("decode", "verify", "prefill", "extend", "draft")


@pytest.mark.parametrize(
    ("programs", "launched", "only"),
    [
        (stated("a"), (0,), 0),
        (stated("a", "b"), (0,), 0),
        (stated("a", "b", "c", on_token="c"), (0, 2), fmt.NONE),
        (stated("a", "b", on_prompt="b", on_token="b"), (0, 1), fmt.NONE),
        (engine("decode"), (0,), 0),
        (engine("decode", "prefill"), (0, 1), fmt.NONE),
        (engine("draft", "decode"), (1,), 1),
        (engine(*ALL), (0, 1, 2, 3, 4), fmt.NONE),
        (engine(*reversed(ALL)), (0, 1, 2, 3, 4), fmt.NONE),
    ],
)
def test_programs_are_launched_if_the_first_leads_to_them(
    programs: list[dict[str, object]], launched: tuple[int, ...], only: int
) -> None:
    table = fmt.program_table(programs, "a" if programs[0]["name"] == "a" else "decode")
    assert (table.launched, table.only) == (launched, only)
    assert table.rows["tokens"].tolist() == [program["tokens"] for program in programs]


@pytest.mark.parametrize(
    ("programs", "words"),
    [
        (stated("b"), "first_program is 'a', want one of"),
        (stated("a", "a"), "want at most 8 of different names"),
        (stated(*"abcdefghi"), "want at most 8 of different names"),
        (stated("a", tokens=0), r"programs\[0\].tokens is 0, want 1 to 32"),
        (stated("a", tokens=33), r"programs\[0\].tokens is 33, want 1 to 32"),
        (stated("a", on_token="b"), r"programs\[0\].on_token is 'b', want null or one of \['a'\]"),
        (stated("a", on_token=None), r"programs\[0\].on_token is null, want a program: it runs"),
        (stated("a", on_prompt=None), r"programs\[0\].on_prompt is null, want a program: it runs"),
        (stated("a", inputs=["ids", "hidden"]), r"programs\[0\] runs and has inputs \['ids', 'hidden'\], want"),
        (stated("a", outputs=["logits"]), r"programs\[0\] runs and has outputs \['logits'\], want"),
        (stated("a", logit_rows="first"), r"programs\[0\].logit_rows is 'first', want 'every' or 'last'"),
        (stated("a", logit_rows="last"), r"programs\[0\].on_single is 'a', which gives the logits of one token a step"),
        (stated("a", drafts=True), r"programs\[0\].on_prompt is 'a', which samples drafts"),
        (stated("a", on_taken="a"), r"programs\[0\] has .*'on_draft': None.*, want all of them or none"),
        (
            engine(*ALL, decode={"on_taken": "decode"}),
            r"on_taken is 'decode', which does not sample drafts",
        ),
        (engine(*ALL, verify={"tokens": 9}), r"programs\[0\].on_taken takes 4 tokens a step, want 9 as"),
        (
            engine(*ALL, extend={"logit_rows": "every"}),
            r"on_taken is 'extend', which samples several drafts",
        ),
    ],
)
def test_a_program_that_no_loop_can_run_is_refused(programs: list[dict[str, object]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fmt.program_table(programs, "decode" if programs[0]["name"] == "decode" else "a")


@pytest.mark.parametrize("name", fmt.TABLES)
def test_tables_round_trip_without_pickle(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    dtype = fmt.TABLES[name].dtype
    path = tmp_path_factory.mktemp(name) / "table.npy"

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 5).flatmap(lambda n: npst.arrays(np.uint8, n * dtype.itemsize)))
    def check(raw: np.ndarray) -> None:
        table = raw.view(dtype)
        np.save(path, table, allow_pickle=False)
        loaded = np.load(path, allow_pickle=False)
        assert loaded.dtype == dtype
        assert loaded.tobytes() == table.tobytes()

    check()
