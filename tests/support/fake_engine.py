"""Engine folders without a compiler: a stand-in kernel (fake_kernel.cpp) and tables of two workers with three tasks."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tilecompile.runtime import format as fmt
from tilecompile.runtime.folder.manifest import manifest_sha256, write_manifest
from tilecompile.runtime.text import _byte_alphabet
from tilecompile.targets.cpu.build import ISAS, build

VOCAB = 300
MAX_SEQ_LEN = 64
EOS = 256
POOL = bytes([5, *range(1, 200)])
TEMPLATE = """{% for m in messages %}{{ m.role[0] }} {{ m.content }} {{ x }}{{ eos_token }}
{% endfor %}>"""
"""A chat template, with a variable of its own."""
SOURCE = Path(__file__).with_name("fake_kernel.cpp")


def next_id(token: int) -> int:
    """The stand-in model."""
    return (token * 7 + 3 + POOL[0]) % VOCAB


def greedy(prompt: list[int], count: int, stops: tuple[int, ...] = (EOS,)) -> list[int]:
    """What the engine must generate."""
    out: list[int] = []
    while len(out) < count and not (out and out[-1] in stops):
        out.append(next_id(out[-1] if out else prompt[-1]))
    return out


@cache
def kernel() -> Path:
    """The stand-in kernel, built once."""
    folder = Path(tempfile.mkdtemp(prefix="tilecompile-test-"))
    (folder / "kernel.cpp").write_text(fmt.c_header() + SOURCE.read_text())
    build(folder / "kernel.cpp", folder / "kernel.so", ISAS["portable"])
    return folder / "kernel.so"


def tokenizer() -> Tokenizer:
    """Byte-level: ids 0 to 255 are the bytes in order, 256 is a special end of text, then two-byte tokens."""
    characters = {code: character for character, code in _byte_alphabet().items()}
    vocab = {characters[byte]: byte for byte in range(256)} | {"<|end|>": EOS}
    merges = [(characters[0xC3], characters[0x80 + i]) for i in range(VOCAB - 257)]
    vocab |= {a + b: 257 + i for i, (a, b) in enumerate(merges)}
    out = Tokenizer(models.BPE(vocab, merges))
    out.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    out.decoder = decoders.ByteLevel()
    out.add_special_tokens(["<|end|>"])
    return out


def tables() -> dict[str, np.ndarray]:
    """Two workers, three tasks: worker 0 runs one and the sink, worker 1 waits for the first."""
    out = {name: np.zeros(0, record.dtype) for name, record in fmt.TABLES.items()}
    out["streams"] = np.zeros(2, fmt.STREAM.dtype)
    out["streams"]["worker"], out["streams"]["begin"], out["streams"]["end"] = [0, 1], [0, 1], [1, 3]
    out["instructions"] = np.zeros(3, fmt.INSTRUCTION.dtype)
    out["instructions"]["kind"], out["instructions"]["op"] = [1, 2, 0], [0, 1, 2]
    out["instructions"]["tile"][1] = [4, 0, 0, 0]
    out["instructions"]["prefetch"] = fmt.NONE
    out["instructions"]["notify_count"], out["instructions"]["wait_count"] = [1, 0, 0], [0, 1, 0]
    out["waits"], out["notifies"] = np.zeros(1, fmt.WAIT.dtype), np.zeros(1, fmt.NOTIFY.dtype)
    out["waits"]["count"] = 1
    out["events"] = np.zeros(1, fmt.EVENT.dtype)
    out["events"]["wait_count"] = 1
    out["buffers"] = np.array(
        [
            (0, 3, 0, 32, 8, 1, 2, 0),  # ids
            (0, 3, 64, 4, 1, 1, 2, 0),  # position
            (0, 3, 128, 32, 8, 1, 2, 0),  # next
            (0, 0, 0, 4 * VOCAB, 1, VOCAB, 0, 0),  # logits
            (0, 1, 0, 4 * MAX_SEQ_LEN, MAX_SEQ_LEN, 1, 2, 0),  # cache
            (0, 2, 0, len(POOL), len(POOL), 1, 0, 0),  # weights
        ],
        fmt.BUFFER.dtype,
    )
    return out


def make_engine(
    folder: Path,
    step_us: int = 0,
    text: bool = True,
    chat: str | None = None,
    weights: bool = True,
    has_kernel: bool = True,
    change: Callable[[dict[str, Any], dict[str, np.ndarray]], None] | None = None,
) -> Path:
    """Writes an engine folder, with a chat template if given; `change` may alter manifest and tables before."""
    data: dict[str, Any] = {
        "model": {"name": "fake", "architecture": "FakeForCausalLM", "config": {"hidden_size": 8, "factor": 1e-5}},
        "target": {"name": "cpu", "isa": "portable", "features": []},
        "machine": "cpu",
        "devices": 1,
        "workers": 2,
        "placement": "single",
        "max_seq_len": MAX_SEQ_LEN,
        "vocab_size": VOCAB,
        "eos_token_ids": [EOS],
        "sampling": {},
        "weights": {
            "dtype": "bf16",
            "source": "seed 0" if weights else "none",
            "pools": [{"device": 0, "file": "weights/device0.bin" if weights else None, "bytes": len(POOL)}],
        },
        "cache": "f32",
        "arenas": [{"device": 0, "activation": 4096, "cache": 4096, "io": 4096}],
        "programs": [
            {
                **fmt.PROGRAMS["decode"].stated(1, ["decode"]),
                "io": {"next": 2, "logits": 3},
                "tasks": 3,
                "events": 1,
                "edges": 1,
                "bytes_per_step": 200,
                "ops": {"linear": 2, "commit": 1},
            }
        ],
        "first_program": "decode",
        "kinds": ["commit", "k1_linear", "k2_linear"],
        "operators": ["layers.0.first", "layers.0.second", "commit"],
        "io": {"ids": 0, "position": 1},
        "scratch_bytes": step_us,
        "compile_seconds": 1.5,
    }
    content = tables()
    if change:
        change(data, content)
    (folder / "tables").mkdir(parents=True)
    for name, table in content.items():
        np.save(folder / "tables" / f"{name}.npy", table)
    (folder / "listing.txt").write_text("worker 0: k1_linear layers.0.first\n")
    if has_kernel:
        shutil.copy(kernel(), folder / "kernel.so")
        shutil.copy(SOURCE, folder / "kernel.cpp")
    if weights:
        (folder / "weights").mkdir()
        (folder / "weights" / "device0.bin").write_bytes(POOL)
    if text:
        tokenizer().save(str(folder / "tokenizer.json"))
    if chat is not None:
        content = {"templates": {"default": chat}, "special_tokens": {"eos_token": "<|end|>"}}
        (folder / "chat.json").write_text(json.dumps(content))
    write_manifest(folder, data, chunk_bytes=64)
    return folder


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None], rehash: bool = True) -> None:
    """Alters engine.json in place."""
    path = folder / "engine.json"
    data = json.loads(path.read_text())
    change(data)
    if rehash:
        data["manifest_sha256"] = manifest_sha256(data)
    path.write_text(json.dumps(data))
