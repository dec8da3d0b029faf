"""Engines for GPUs, made without one: the kernel of some kinds, and whole engines of the tiny checkpoint."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from support.paths import TINY_CHECKPOINT
from support.stream_cases import linear
from tilecompile.cli.app import app
from tilecompile.errors import InputError
from tilecompile.ir.node import OpNode, View
from tilecompile.runtime.folder.contract import MARK
from tilecompile.runtime.format import SHARED_BYTES
from tilecompile.targets.cuda.build import ARCHITECTURES
from tilecompile.targets.cuda.emit import GpuKind, task_kinds
from tilecompile.targets.cuda.kernel import Kernel, make_kernel


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, empty."""
    monkeypatch.setenv("TILECOMPILE_CACHE", str(tmp_path_factory.mktemp("cache")))


def some_kinds(tokens: int = 1) -> list[GpuKind]:
    """A product of fp8, one of bf16, and a norm."""
    x, y = View.of("x", (tokens, 256), "f32"), View.of("y", (tokens, 256), "f32")
    norm = OpNode("norm", "rms_norm", (x, View.of("w", (256,), "f32")), (), (y,), {"eps": 1e-5})
    nodes = [linear("gate_up", tokens, 64, 256, "fp8", two=True).node, linear("o", tokens, 64, 256, "bf16").node, norm]
    return task_kinds({node.name: node for node in nodes})[0]


def kernel(shared: int = SHARED_BYTES) -> Kernel:
    return make_kernel(some_kinds(), {1: 8, 2: 4}, "sm_90a", shared, "test", {"answer": 42})


def test_a_kernel_holds_its_kinds_and_contract(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = kernel()
    for line in (
        "// gate_up: x[1,256]f32",
        "TC_DEVICE void k1_linear(const Call& c) {",
        "case 3: return k3_rms_norm(c);",
    ):
        assert line in made.source
    assert (MARK + '{"answer": 42}').encode() in made.cubin
    assert [kind["kind"] for kind in made.resources["kinds"]] == ["k1_linear", "k2_linear", "k3_rms_norm"]
    for used in (made.resources["kernel"], *made.resources["kinds"]):
        assert (used["spills"], used["local"]) == (0, 0)
        assert 16 <= used["registers"] <= 168
    assert made.resources["kernel"]["shared"] == SHARED_BYTES
    scratch = max(kind["shared"] for kind in made.resources["kinds"])
    assert made.resources["ring"]["slots"] == (SHARED_BYTES - 2048 - -(-scratch // 1024) * 1024) // 16384
    monkeypatch.setenv("TILECOMPILE_CACHE", str(tmp_path))
    assert kernel() == made  # to the byte, from an empty cache again


def test_bodies_that_leave_the_ring_no_room_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"^k1_linear \(gate_up\) takes \d+ bytes of shared memory beside the ring, 14336 are"
    ):
        kernel(48 * 1024)


def contents(engine: Path) -> dict[str, str]:
    """The digest of each of the engine's files; the manifest's without the time that compiling took, and its sum."""
    found = {}
    for path in sorted(p for p in engine.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.name == "engine.json":
            manifest = json.loads(data)
            assert manifest.pop("compile_seconds") > 0
            assert manifest.pop("manifest_sha256")
            data = json.dumps(manifest).encode()
        found[str(path.relative_to(engine))] = hashlib.sha256(data).hexdigest()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("target", ARCHITECTURES)
def test_the_tiny_checkpoint_compiles_to_the_same_bytes_again(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiles in 90 s, the second time in 10, to the same bytes; no test runs it."""
    outputs = [tmp_path / "a", tmp_path / "b"]
    seconds = []
    for output in outputs:
        begin = time.process_time()
        result = CliRunner().invoke(app, ["compile", str(TINY_CHECKPOINT), "--target", target, "-o", str(output)])
        assert result.exit_code == 0, result.output
        seconds.append(time.process_time() - begin)
    assert seconds[0] <= 90
    assert seconds[1] <= 10
    assert contents(outputs[1]) == contents(outputs[0])
    if target == "sm_90a":  # another process, whose sets and dictionaries have another order, from an empty cache
        monkeypatch.setenv("TILECOMPILE_CACHE", str(tmp_path / "empty"))
        monkeypatch.setenv("PYTHONHASHSEED", "7")
        command = [sys.executable, "-m", "tilecompile", "compile", str(TINY_CHECKPOINT), "--target", target]
        subprocess.run([*command, "-o", str(tmp_path / "c")], check=True, capture_output=True)
        assert contents(tmp_path / "c") == contents(outputs[0])
    result = CliRunner().invoke(app, ["inspect", str(outputs[0]), "--json"])
    about = json.loads(result.stdout)
    assert (about["target"], about["workers"]) == (target, {"sm_90a": 132, "sm_100a": 148}[target])
    kinds = about["resources"]["kinds"]
    assert all((kind["spills"], kind["local"]) == (0, 0) for kind in kinds)
    assert {"mla_attention", "linear", "topk_select", "expert_combine"} <= {k["kind"].split("_", 1)[1] for k in kinds}
    table = CliRunner().invoke(app, ["inspect", str(outputs[0])]).stdout
    assert "registers" in table
    assert "k3_linear" in table
    result = CliRunner().invoke(app, ["verify", str(outputs[0])])
    assert result.exit_code == 0, result.output
