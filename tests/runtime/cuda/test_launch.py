"""Engines for GPUs from load to close: the runtime on a driver without a GPU, the kernel's text on the host."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilecompile
from support.engines import tiny_model
from support.fake_cuda import Done, run
from support.host_kernel import compile_for_host
from support.launched import IDS, NEW, REQUESTS, talked
from support.two_programs import alternating
from tilecompile.compile import compile_model
from tilecompile.options import CompileOptions

ERROR = 0.01
"""Of logits, to their RMS, for 16-bit activations and caches in a model of so few layers."""

BY_THE_WAY = {"cuCtxSetCurrent", "cuStreamQuery", "cuGetErrorName", "cuGetErrorString"}
"""Calls whose number depends on time, or on which nothing rests."""

LAST = {
    *("cuCtxDestroy", "cuMemFree", "cuMemFreeHost", "cuMemUnmap", "cuMemAddressFree", "cuMemRelease"),
    *("cuStreamDestroy", "cuEventDestroy", "cuLibraryUnload"),
}
"""Calls that free something: their failures aren't reported."""


@dataclass(frozen=True)
class Built:
    """An engine, and its kernel for the host."""

    path: Path
    kernel: Path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The tiny model for two GPUs with two workers each; `conftest.two_devices` has the same for CPUs."""
    folder = tmp_path_factory.mktemp("gpus")
    model = tiny_model(folder / "model")
    stated: dict[str, Any] = {"seed": 1, "devices": 2, "workers": 2, "max_seq_len": 64, "prefill": 4, "drafts": 3}
    options = CompileOptions(str(model), folder / "engine", target="sm_90a", **stated)
    return Built(options.output, compile_for_host(options))


def launched(what: str, built: Built, folder: Path, **settings: object) -> tuple[dict[str, Any], Done]:
    """What a function of launched.py writes, after it ended successfully with nothing left allocated."""
    out = folder / f"{what}.npz"
    done = run(["-m", "support.launched", what, built.path, out], built.kernel, **settings)
    assert done.code == 0, done.err
    done.clean()
    return dict(np.load(out)), done


def attempts(built: Built, folder: Path, settings: Sequence[dict[str, str]], devices: int) -> list[dict[str, Any]]:
    """What happens under each of these settings of the driver, in one process."""
    out = folder / "attempts.json"
    out.write_text(json.dumps([{"DEVICES": str(devices), **s} for s in settings]))
    done = run(["-m", "support.launched", "attempts", built.path, out], built.kernel, timeout=600)
    assert done.code == 0, done.err
    return list(json.loads(out.read_text()))


def same_as_cpus(found: dict[str, Any], cpu: Path) -> None:
    """Logits within the error of 16-bit activations, the same choice where the gap is larger, the same tokens."""
    with tilecompile.load(cpu) as e:
        logits, tokens = e.score(IDS), e.generate(IDS, NEW).tokens
    scale = np.sqrt((logits.astype(np.float64) ** 2).mean(1, keepdims=True))
    assert np.isfinite(found["logits"]).all()
    errors = (found["logits"] - logits) / scale
    largest, typical = float(np.abs(errors).max()), float(np.sqrt((errors**2).mean()))
    assert largest < 5 * ERROR
    assert typical < ERROR
    top = np.sort(logits, 1)
    clear = top[:, -1] - top[:, -2] > 5 * ERROR * scale[:, 0]
    assert clear.any()
    assert (found["logits"].argmax(1) == logits.argmax(1))[clear].all()
    assert found["tokens"].tolist() == tokens


def repeats(found: dict[str, Any]) -> None:
    """The same request gives the same bits, in pieces, after an abort, in a second turn, and loaded anew too."""
    assert found["logits"].tobytes() == found["again"].tobytes()
    assert found["logits"][5:].tobytes() == found["rest"].tobytes()
    assert found["tokens"].tolist()[:2] == found["begun"].tolist()
    cached, steps, *tokens = found["turn"].tolist()
    assert (cached, steps) == (len(IDS), 1)  # the score before it was of IDS; the second token is a step of its own
    assert tokens == found["fresh_turn"].tolist()
    assert len(found["kept"]) == len(IDS) + NEW + 2
    assert found["gone_on"].tobytes() == found["fresh"].tobytes()
    assert found["launches"] == 1


def test_two_gpus_compute_what_cpus_do(two: Built, two_devices: Path, tmp_path: Path) -> None:
    found, done = launched("compute", two, tmp_path, devices=2)
    same_as_cpus(found, two_devices)
    repeats(found)
    assert done.calls["cuLaunchKernelEx"] == 4  # a launch a device and load
    both, done = launched("one_gpu", two, tmp_path)
    assert both["logits"].tobytes() == found["logits"].tobytes()
    assert done.calls["cuCtxCreate"] == 1


def same_texts(found: dict[str, Any], want: dict[str, Any], kind: str = "") -> None:
    """The tokens of some turns, and their log-probabilities within the error of 16-bit activations."""
    for name in set(want) & set(REQUESTS):
        assert found[kind + name].tolist() == want[name], kind + name
        if f"{name} logprobs" not in want:
            continue
        assert np.allclose(found[f"{kind}{name} logprobs"], want[f"{name} logprobs"], atol=0.1), kind + name
        top, of_cpus = (np.array(w, np.float64)[:, 1::2] for w in (found[f"{kind}{name} top"], want[f"{name} top"]))
        assert top.shape == of_cpus.shape
        assert np.allclose(top, of_cpus, atol=0.1), kind + name
        assert (np.diff(top) <= 0).all(), kind + name


def test_text_is_sampled_as_on_cpus(two: Built, two_devices: Path, tmp_path: Path) -> None:
    """Every parameter, with log-probabilities and drafts, then a mask, stop ids, an abort in a pause."""
    found, _ = launched("sampled", two, tmp_path, devices=2)
    with tilecompile.load(two_devices) as e:
        want = talked(e, names=("everything", "masked"))
        same_texts(found, want)
        assert found["after"].tolist() == e.generate(IDS, 1).tokens
    assert all(token % (3 if i % 2 else 2) == 0 for i, token in enumerate(want["masked"]))
    assert len(set(want["everything"])) > 3
    assert found["stopped"].tolist() == want["everything"][:2]
    assert "allows no token after 1 tokens" in str(found["refused"])
    assert int(found["begun"]) % 2 == 0


@pytest.mark.slow
def test_conversations_are_sampled_as_on_cpus_whatever_is_drafted(
    two: Built, two_devices: Path, tmp_path: Path
) -> None:
    found, _ = launched("conversations", two, tmp_path, devices=2, timeout=600)
    with tilecompile.load(two_devices) as e:
        want = talked(e)
    for drafts in (None, 0, 3):
        same_texts(found, want, f"{drafts} ")
        for name in [name for name in want if name.endswith(("logprobs", "top"))]:
            assert found[f"{drafts} {name}"].tobytes() == found[f"None {name}"].tobytes(), f"{name}, {drafts}"
    assert want["biased"] == [5] * 2


def test_the_depth_of_drafts_adapts_on_gpus(two: Built, tmp_path: Path) -> None:
    """Left to the engine, a request tries steps without drafts too; a fixed depth never does."""
    found, _ = launched("depths", two, tmp_path, devices=2)
    verify, decode = (int(i) for i in found["numbers"])
    assert found["auto"][verify] > 0
    assert found["auto"][decode] > found["fixed"][decode]


def test_a_script_takes_the_place_of_drafts_on_gpus(two: Built, tmp_path: Path) -> None:
    found, _ = launched("scripted", two, tmp_path, devices=2)
    for rate in (0.0, 0.5, 1.0):
        assert found[f"tokens {rate}"].tolist() == found["plain"].tolist()
    assert found["rate 1.0"].tolist() == [1.0] * 3
    assert not found["rate 0.0"].any()
    assert 0 < found["rate 0.5"][0] < 1


def test_two_gpus_alternate_between_programs(two: Built, tmp_path: Path) -> None:
    """Alternating steps of two programs, with epochs of their own, give the bits of one program."""
    both = replace(two, path=alternating(two.path, tmp_path / "engine"))
    found, _ = launched("generated", both, tmp_path, devices=2)
    want, _ = launched("generated", two, tmp_path, devices=2)
    assert found["tokens"].tolist() == want["tokens"].tolist()
    assert found["logits"].tobytes() == want["logits"].tobytes()


def test_own_selections_replayed_on_gpus_give_the_same_bits(two: Built, tmp_path: Path) -> None:
    found, _ = launched("replayed", two, tmp_path, devices=2)
    assert found["got"].tobytes() == found["want"].tobytes() == found["after"].tobytes()


def test_drawn_weights_depend_on_the_seed_alone(two: Built, tmp_path: Path) -> None:
    found, _ = launched("drawn", two, tmp_path, devices=2)
    assert found["first"].tobytes() == found["second"].tobytes() != found["other"].tobytes()
    assert np.isfinite(found["first_logits"]).all()
    assert (found["first_logits"] == found["second_logits"]).all()
    assert (found["first_logits"] != found["other_logits"]).any()


def test_a_stall_is_reported_and_the_engine_goes_on(two: Built, tmp_path: Path) -> None:
    out = tmp_path / "stalls.json"
    done = run(["-m", "support.launched", "stalls", two.path, out], two.kernel, devices=2)
    assert done.code == 0, done.err
    done.clean()
    found = json.loads(out.read_text())
    assert found["launches"] == 2
    for said in found["said"]:
        assert "waits before task" in said


REFUSALS = {
    "DEVICES=0": "this machine has none that CUDA can use",
    "DEVICES=1": "the engine is for 2 devices",
    "VERSION=12040": "needs a driver for 13.0 or newer; this machine's is for CUDA 12.4",
    "CAPABILITY=8.6": "the engine is for sm_90a (compute capability 9.0), GPU 0 (Fake GPU) has 8.6",
    "SHARED=101376": "a block needs 232448 bytes of shared memory, GPU 0 (Fake GPU) gives 101376",
    "SMS=1": "2 workers want an SM each, GPU 0 (Fake GPU) has 1",
    "MEMORY=1000000": "bytes of memory on GPU 0 (Fake GPU), 1000000 of 1000000 are free",
    "USED=1060000000": "1073741824 are free; other processes use the rest",
    "PEER=0": "GPU 0 can't reach the memory of GPU 1",
    "COOPERATIVE=0": "the engine needs cooperative launches",
    "MODE=2": "another process has it for itself",
    "FAIL=cuInit:1:100": "this machine has none that CUDA can use",
    "FAIL=cuInit:1:803": "CUDA: cuInit failed: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    "FAIL=cuLaunchKernelEx:2:720": "GPU 1 (Fake GPU): its SMs can't hold 2 blocks at once",
}


def test_unfit_devices_are_refused_in_one_line(two: Built, tmp_path: Path) -> None:
    results = attempts(two, tmp_path, [dict([text.split("=")]) for text in REFUSALS], 2)
    for wanted, result in zip(REFUSALS.items(), results, strict=True):
        assert wanted[1] in result["said"], wanted
        check(result, wanted[0])


def check(result: dict[str, Any], why: str) -> None:
    """One line, nothing left allocated, nothing that would break a GPU."""
    assert "\n" not in result["said"], why
    assert not result["violations"], (why, result["violations"])
    assert not any(result["live"].values()), (why, result["live"])


def failing(built: Built, folder: Path, fails: list[tuple[str, int, int]], devices: int) -> None:
    """Fails calls, each (function, number, result), one after the other: each is reported, and nothing is left."""
    settings = [{"FAIL": f"{name}:{number}:{code}"} for name, number, code in fails]
    for (name, number, code), result in zip(fails, attempts(built, folder, settings, devices), strict=True):
        why = f"{name}:{number}:{code}"
        if name in LAST:
            assert not result["violations"], (why, result["violations"])
            continue
        words = {"cuStreamQuery": "the kernel", "cuMemAlloc": "bytes for", "cuMemCreate": "bytes for"}
        assert name in result["said"] or (name in words and words[name] in result["said"]), (why, result["said"])
        check(result, why)


def calls(built: Built, folder: Path, devices: int) -> dict[str, int]:
    """How often each function is called."""
    (result,) = attempts(built, folder, [{}], devices)
    assert not result["said"]
    return dict(result["calls"])


def test_failure_of_each_driver_function_is_reported(two: Built, tmp_path: Path) -> None:
    known = calls(two, tmp_path, 2)
    assert len(known) > 35
    failing(two, tmp_path, [(name, 1, 2) for name in known], 2)


@pytest.mark.slow
def test_failure_of_each_driver_call_is_reported(two: Built, tmp_path: Path) -> None:
    """Also those in the middle, with another result, and as faults, after which nothing in the context works."""
    known = calls(two, tmp_path, 2)
    one = [(n, i, 999) for n, count in known.items() if n not in BY_THE_WAY for i in range(1, count + 1)]
    one = [each for each in one if each[:2] != ("cuDriverGetVersion", 2)]  # asked for once a process
    failing(two, tmp_path, one, 2)


@pytest.mark.slow
@pytest.mark.parametrize("fail", ["cuStreamQuery:1:700", "cuStreamQuery:2:719", "cuLaunchKernelEx:2:719"])
def test_a_fault_of_one_of_two_gpus_leaves_nothing(two: Built, tmp_path: Path, fail: str) -> None:
    (result,) = attempts(two, tmp_path, [{"FAIL": fail}], 2)
    assert ("the kernel failed" if "Query" in fail else "cuLaunchKernelEx failed") in result["said"]
    check(result, fail)


def test_the_command_line_reports_a_refusal_in_one_line(two: Built) -> None:
    done = run(["-m", "tilecompile", "generate", two.path, "--prompt", "a", "--max-new-tokens", "2"], two.kernel)
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert "the engine is for 2 devices" in done.err


@pytest.mark.slow
def test_stop_ids_and_the_real_cubin_on_one_gpu(tmp_path: Path) -> None:
    """With NVRTC's kernel in the folder, as users have it."""
    plain = tiny_model(tmp_path / "plain")
    stated: dict[str, Any] = {"seed": 1, "workers": 4, "max_seq_len": 64}
    compile_model(CompileOptions(str(plain), tmp_path / "cpu", target="cpu-portable", **stated))
    with tilecompile.load(tmp_path / "cpu") as e:
        tokens = e.generate(IDS, NEW).tokens
    stop = tokens[5]
    model = tiny_model(tmp_path / "model", eos_token_id=[stop])
    options = CompileOptions(str(model), tmp_path / "engine", target="sm_90a", **stated)
    built = Built(options.output, compile_for_host(options, cubin=True))
    found, _ = launched("generated", built, tmp_path)
    assert found["tokens"].tolist() == tokens[: tokens.index(stop) + 1]
    for fail in ("cuStreamQuery:1:700", "cuStreamQuery:2:719", "cuMemcpyHtoDAsync:4:700"):  # faults
        (result,) = attempts(built, tmp_path, [{"FAIL": fail}], 1)
        assert ("the kernel failed" if "Query" in fail else "cuMemcpyHtoDAsync failed") in result["said"]
        check(result, fail)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stated",
    [
        {"devices": 2, "workers": 3, "placement": "even"},
        {"devices": 2, "workers": 2, "placement": "roles"},
        {"devices": 4, "workers": 2, "reduction": "two_step"},
        {"devices": 1, "workers": 3, "granularity": 3},
    ],
)
def test_other_plans_compute_the_same(two_devices: Path, tmp_path: Path, stated: dict[str, Any]) -> None:
    model = tiny_model(tmp_path / "model")
    options = CompileOptions(str(model), tmp_path / "engine", seed=1, max_seq_len=64, target="sm_90a", **stated)
    built = Built(options.output, compile_for_host(options))
    found, _ = launched("compute", built, tmp_path, devices=stated["devices"])
    same_as_cpus(found, two_devices)
    repeats(found)
