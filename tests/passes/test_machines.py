"""Machine descriptions: those that come with the package, and the errors about bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tilecompile.cli.app import app
from tilecompile.errors import InputError
from tilecompile.options import CompileOptions
from tilecompile.runtime.machine import usable_cores
from tilecompile.schedules.machine import FOLDER, OpCost, load_machine, machine_names
from tilecompile.schedules.this_machine import cache_bytes, memory_bytes

GPUS = ("h100", "h200", "b200")
NODES = tuple(f"{name}x8" for name in GPUS)
BASE = 'name = "m"\ntarget = "cpu"\ndevices = 1\n'
SIMULATOR = BASE + "[simulator]\ntask_ns = 1\nevent_ns = 2\nremote_event_ns = 3\n"


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "m.toml"
    path.write_text(text)
    return str(path)


def test_machine_names_lists_the_packages_machines() -> None:
    assert set(machine_names()) == {"cpu", *GPUS, *NODES}


@pytest.mark.parametrize("name", [*GPUS, *NODES])
def test_descriptions_of_gpus_have_sources_and_nodes_of_eight(name: str) -> None:
    """Every number has a source, and a node is eight times its GPU."""
    machine = load_machine(name)
    assert (machine.name, machine.devices, machine.is_cpu) == (name, 8 if name in NODES else 1, False)
    text = (FOLDER / f"{name}.toml").read_text()
    facts = text.partition("[sources]")[0]
    stated = {line.split(" = ")[0] for line in facts.splitlines() if " = " in line} - {"name", "target"}
    assert set(machine.sources) == stated
    simulator = machine.simulator
    assert simulator is not None
    costs = text.partition("[simulator]")[2].partition("[simulator.sources]")[0]
    keys = {line.split(" = ")[0] for line in costs.partition("[simulator.ops")[0].splitlines() if " = " in line}
    assert set(simulator.sources) == keys | {"ops"}
    assert simulator.calibrated is None
    assert machine.bandwidth_gbs is not None
    _, worker, device = simulator.read[-1]
    assert device < machine.bandwidth_gbs <= worker * machine.workers  # type: ignore[operator]
    assert simulator.remote_event_ns == simulator.event_ns + (load_machine(f"{name[:4]}x8").link_latency_ns or 0)
    if name in NODES:
        one, two = vars(load_machine(name[:4])), vars(machine)
        own = {"name", "devices", "link_gbs", "link_latency_ns", "sources"}
        assert {k: one[k] for k in one.keys() - own} == {k: two[k] for k in two.keys() - own}


def test_the_cpu_description_is_completed_from_this_machine() -> None:
    """What the file doesn't state is read off the machine."""
    machine = load_machine("cpu")
    assert (machine.is_cpu, machine.workers, machine.cores) == (True, None, usable_cores())
    assert machine.memory_bytes == memory_bytes()
    assert machine.cache_bytes == cache_bytes()
    assert machine.simulator is None


def test_cache_and_memory_sizes_are_read_from_the_system(tmp_path: Path) -> None:
    for i, (level, kind, size) in enumerate(
        [("1", "Data", "32K"), ("1", "Instruction", "64K"), ("2", "Unified", "1M"), ("3", "Unified", "1G")]
    ):
        folder = tmp_path / f"index{i}"
        folder.mkdir()
        for name, value in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(value + "\n")
    assert cache_bytes(tmp_path) == (32 << 10, 1 << 20, 1 << 30)
    (tmp_path / "index0" / "size").write_text("many\n")
    assert cache_bytes(tmp_path) == ()
    assert cache_bytes(tmp_path / "absent") == ()
    (tmp_path / "meminfo").write_text("MemFree: 1 kB\nMemTotal:  2048 kB\n")
    assert memory_bytes(tmp_path / "meminfo") == 2 << 20
    assert memory_bytes(tmp_path / "absent") is None


def test_a_machine_file_of_ones_own_is_loaded(tmp_path: Path) -> None:
    text = SIMULATOR.replace("[simulator]", "cores = 3\nmemory_bytes = 5\n[simulator]\nread = [[1, 2, 3.5], [2, 2, 3]]")
    machine = load_machine(written(tmp_path, text + "[simulator.ops.linear]\ntask_ns = 7\nbyte_ns = { bf16 = 0.5 }\n"))
    assert (machine.cores, machine.memory_bytes) == (3, 5)
    assert machine.simulator is not None
    assert machine.simulator.read == ((1, 2, 3.5), (2, 2, 3))
    assert machine.simulator.ops == {"linear": OpCost(task_ns=7, byte_ns={"bf16": 0.5})}
    settings = CompileOptions("glm5-mini", tmp_path / "e", machine=str(tmp_path / "m.toml")).resolve()
    assert (settings.devices, settings.workers) == (1, 3)


BAD = [
    ("name = ", "is not valid TOML: "),
    ("a = " + "[" * 5000, "is not valid TOML: "),
    ('target = "cpu"\ndevices = 1', "missing key name"),
    (BASE + "gpus = 3", "unknown key gpus; keys are: name, target, devices, workers"),
    (BASE + '"a\\nb" = 3', r"unknown key 'a\nb'; keys are: "),
    (BASE + "cores = true", "cores is True, want a whole number from 1 to 1e+18"),
    (BASE + "cores = 0", "cores is 0, want a whole number from 1 to 1e+18"),
    (BASE + "cores = 2.5", "cores is 2.5, want a whole number from 1"),
    (BASE + "cores = 1" + "0" * 400, f"cores is 1{'0' * 59}…, want a whole number from 1"),
    (BASE.replace("1", '"1"'), "devices is '1', want a whole number"),
    (BASE.replace('"cpu"', '"gpu"'), "target is 'gpu', want one of: cpu, sm_90a, sm_100a"),
    (BASE.replace('"m"', "3"), "name is 3, want a string"),
    (BASE + "link_gbs = 0", "link_gbs is 0, want a number above 0, up to 1e+18"),
    (BASE + "link_latency_ns = nan", "link_latency_ns is nan, want a number from 0 to 1e+18"),
    (BASE + "bandwidth_gbs = inf", "bandwidth_gbs is inf, want a number above 0"),
    (BASE + 'weight_types = ["fp4"]', "weight_types[0] is 'fp4', want one of: f32, bf16, fp8, nvfp4"),
    (BASE + "cache_bytes = 3", "cache_bytes is 3, want a list, each a whole number"),
    (BASE + "sources = 3", "sources is 3, want a table"),
    (BASE + "[sources]\nname = 3", "sources.name is 3, want a string"),
    (BASE + "[simulator]\ntask_ns = 3", "missing key simulator.read, simulator.event_ns, simulator.remote_event_ns"),
    (SIMULATOR + "read = []", "simulator.read is [], want at least one entry"),
    (SIMULATOR + "read = [[1, 2]]", "simulator.read[0] is [1, 2], want a list of 3: a number"),
    (SIMULATOR + "read = [[1, 2, 0]]", "simulator.read[0][2] is 0, want a number above 0"),
    (SIMULATOR + "read = [[2, 2, 2], [2, 2, 2]]", "has a working set of 2 bytes after one of 2, want growing ones"),
    (SIMULATOR + "read = [[1, 2, 3]]\nops = 1", "simulator.ops is 1, want a table"),
    (SIMULATOR + "read = [[1, 2, 3]]\n[simulator.ops.linear]\nns = 1", "unknown key simulator.ops.linear.ns; keys are"),
    (
        SIMULATOR + "read = [[1, 2, 3]]\n[simulator.ops.x]\nbyte_ns = { f8 = 1 }",
        "unknown key simulator.ops.x.byte_ns.f8",
    ),
    ('name = "m"\ntarget = "sm_90a"\ndevices = 2', "missing key link_gbs, link_latency_ns, which 2 devices need"),
]


@pytest.mark.parametrize(("text", "words"), BAD)
def test_a_bad_machine_file_is_refused_by_key(tmp_path: Path, text: str, words: str) -> None:
    """One line that names the file, the key, what it is and what is required."""
    path = written(tmp_path, text)
    with pytest.raises(InputError) as error:
        load_machine(path)
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    result = CliRunner().invoke(app, ["compile", "glm5-mini", "-o", str(tmp_path / "e"), "--machine", path])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: {' '.join(str(error.value).split())}\n"


def test_a_machine_that_is_neither_known_nor_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(InputError, match="is not valid TOML: "):
        load_machine(str(tmp_path / "m.toml"))
    for name in ("h100x4", str(tmp_path), ""):
        with pytest.raises(InputError, match="is unknown and no file; there are: b200, b200x8, cpu, "):
            load_machine(name)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (BASE.replace("1", "1025"), {}, "devices of machine m is 1025, want 1 to 1024"),
        (BASE + "workers = 65537", {}, "workers of machine m is 65537, want 1 to 65536"),
        (BASE + "workers = 5", {"workers": 4}, "--workers 4 contradicts --machine m, which has 5"),
        (BASE, {"devices": 2}, "--devices 2 contradicts --machine m, which has 1"),
    ],
)
def test_options_that_contradict_the_machine_are_refused(
    tmp_path: Path, text: str | None, options: dict[str, object], words: str
) -> None:
    if text is not None:
        options = {**options, "machine": written(tmp_path, text)}
    with pytest.raises(InputError) as error:
        CompileOptions("glm5-mini", tmp_path / "e", **options).resolve()  # type: ignore[arg-type]
    assert str(error.value) == words


def test_weights_of_a_type_that_the_machine_lacks_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, BASE + 'weight_types = ["bf16"]')
    args = ["compile", "glm5-mini", "-o", str(tmp_path / "e"), "--machine", path, "--weights", "f32"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "error: weights are f32, and machine m takes bf16"
