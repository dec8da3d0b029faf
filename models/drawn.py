"""Random parameters from a seed, for models without available weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tilecompile.models.spec import C
from tilecompile.models.weights import Weights

BLOCK = 64
"""Rows of a tensor that are drawn together."""


class DrawnWeights(Weights[C]):
    """Random weights from a seed, for models without available weights.

    Every block of rows of every checkpoint tensor is drawn by itself from (seed, tensor, block), so any window costs
    only its own blocks. Values are uniform, in steps of 16-bit integers: exact on every machine, and sums over a row
    are close to normal all the same. Only mean and variance matter, which the model's spec chooses (`spread`).
    """

    def __init__(self, config: C, seed: int) -> None:
        super().__init__(config, f"weights drawn with seed {seed}")
        self.seed = seed
        self._block = lru_cache(maxsize=16)(self._draw)

    def _draw(self, tensor: str, rows: int, cols: int, block: int) -> npt.NDArray[np.float32]:
        """Block number `block` of a tensor of `rows` rows."""
        rows = min(BLOCK, rows - block * BLOCK)
        digest = hashlib.blake2b(f"{self.seed}/{tensor}/{block}".encode(), digest_size=16).digest()
        generator = np.random.PCG64(int.from_bytes(digest, "little"))
        raw = generator.random_raw(-(-rows * cols // 4)).astype("<u8").view("<i2")[: rows * cols]
        mean, deviation = self.spec.spread(self.config, tensor, cols)
        step = deviation * 3**0.5 / 2**15
        values: npt.NDArray[np.float32] = raw.reshape(rows, cols).astype(np.float32)
        values += 0.5
        values *= np.float32(step)
        values += np.float32(mean)
        return values

    def _blocks(self, tensor: str, shape: tuple[int, ...], rows: slice) -> Iterator[npt.NDArray[np.float32]]:
        height, width = (1, *shape)[-2:]
        for block in range(rows.start // BLOCK, -(-rows.stop // BLOCK)):
            start = block * BLOCK
            yield self._block(tensor, height, width, block)[max(rows.start - start, 0) : rows.stop - start]

    def _window(self, tensor: str, shape: tuple[int, ...], rows: slice, cols: slice) -> Tensor:
        blocks = list(self._blocks(tensor, shape, rows))
        return torch.from_numpy(np.concatenate([block[:, cols] for block in blocks]))
