"""Random weights and caches on GPUs: what is drawn covers all that is streamed, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.engines import tiny_model
from tilecompile.compile import compile_model
from tilecompile.options import CompileOptions
from tilecompile.runtime import format as fmt
from tilecompile.runtime.cuda.fill import PIECE, cache_fills, weight_fills
from tilecompile.runtime.folder.manifest import read_manifest
from tilecompile.runtime.folder.tables import load_tables

POOL = 1 << 40


@pytest.mark.parametrize("dtype", ["fp8", "bf16"])
def test_every_byte_is_drawn_once(tmp_path: Path, dtype: str) -> None:
    """Tiles, all experts' copies of them with their scales, constants and caches; no piece is larger than PIECE."""
    how: dict[str, Any] = {"weights": dtype, "no_weights": True, "no_kernel": True, "max_seq_len": 64}
    options = CompileOptions(
        str(tiny_model(tmp_path / "m")), tmp_path / "e", target="sm_90a", devices=2, workers=4, **how
    )
    compile_model(options)
    manifest = read_manifest(tmp_path / "e")
    tables = load_tables(manifest)
    for device in range(2):
        found = weight_fills(tables, device, POOL)
        assert found["bytes"].max() <= PIECE
        assert not (found["target"] % 16).any()
        assert not (found["bytes"] % 16).any()
        assert np.array_equal(found["stream"], np.arange(len(found)))
        times = np.zeros(int(manifest.pools[device]["bytes"]) + 64, np.int64)
        kinds = np.full(len(times), -1)
        for record in found:
            begin = int(record["target"]) - POOL
            times[begin : begin + int(record["bytes"])] += 1
            kinds[begin : begin + int(record["bytes"])] = record["type"]
        assert times.max() == 1
        tiles = tables["tiles"][tables["tiles"]["device"] == device]
        for tile in tiles:
            begin, size = int(tile["offset"]), int(tile["bytes"])
            for copy in range(int(tile["copies"])):
                mine = slice(begin + copy * size, begin + (copy + 1) * size)
                assert times[mine].all()
                kind = fmt.DTYPES[tables["weights"]["dtype"][tile["tensor"]]]
                assert kinds[mine][-1] == {"fp8": fmt.FILL_E4M3, "bf16": fmt.FILL_BF16}[kind]
                assert kinds[mine][0] == {"fp8": fmt.FILL_F32, "bf16": fmt.FILL_BF16}[kind]
        caches = cache_fills(tables, device, POOL)
        buffers = tables["buffers"]
        mine = (buffers["device"] == device) & (buffers["arena"] == fmt.ARENAS.index("cache"))
        assert caches["bytes"].sum() >= buffers["bytes"][mine].sum() > 0
        assert set(caches["type"].tolist()) == {fmt.FILL_BF16}
        of_scales = found[found["type"] == fmt.FILL_F32]
        if dtype == "fp8":
            scale = of_scales["low"] == of_scales["high"]
            assert scale.any()
            assert (of_scales["high"][scale] * 448 <= 3).all()
