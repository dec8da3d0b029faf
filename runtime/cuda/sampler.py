"""What the host does for bodies that sample on GPUs: between steps it writes what they read, while the kernel waits.

The kernel's controller keeps the counts of generated ids; see `targets/cuda/control.cuh`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.format import BIASED, COUNTED, SAMPLING
from tilecompile.runtime.kernel import Record

Write = Callable[[str, npt.NDArray[Any]], None]
"""Copies an array to a tensor of SAMPLING_INPUTS on the device that has the sink."""


class DeviceSampler:
    """The tensors of SAMPLING_INPUTS on a device, written for one request at a time."""

    def __init__(self, write: Write, vocab: int) -> None:
        self._write, self._vocab = write, vocab
        self._bias = np.zeros(vocab, np.float32)

    def begin(self, request: Record, mail: Record) -> None:
        """Writes a request's parameters, biases and counted ids, and in its mail what the controller needs of them."""
        stated = int(request["sampling"][0])
        record = _array(stated, 1, SAMPLING.dtype) if stated else np.zeros(1, SAMPLING.dtype)
        flags = int(record["flags"][0])
        self._write("sampling", record)
        mail["samples"], mail["counted"] = stated != 0, (flags & COUNTED) != 0
        mail["masks"] = request["allowed"][0] != 0
        mail["text_begin"], mail["stop_count"] = record["text_begin"], record["stop_count"]
        if flags & BIASED:
            count = int(request["bias_count"][0])
            self._bias[:] = 0
            self._bias[_array(int(request["bias_ids"][0]), count, "<i4")] = _array(
                int(request["biases"][0]), count, "<f4"
            )
            masked = int(request["allowed"][0])
            self.allow(_array(masked, -(-self._vocab // 8), "u1") if masked else None)
        if flags & COUNTED:
            counts = np.zeros(self._vocab, np.int32)
            counts[_array(int(request["before"][0]), int(request["position"][0]), "<i4")] = 1
            counts[_array(int(request["ids"][0]), int(request["count"][0]), "<i4")] = 1
            self._write("counts", counts)

    def allow(self, bits: npt.NDArray[np.uint8] | None) -> None:
        """Writes the biases for the next token: those of the request, without the ids that a mask forbids."""
        bias = self._bias
        if bits is not None:
            forbidden = np.unpackbits(bits, count=self._vocab, bitorder="little") == 0
            bias = np.where(forbidden, np.float32(-np.inf), bias)
        self._write("bias", bias)


def _array(at: int, count: int, dtype: Any) -> npt.NDArray[Any]:
    """A copy of what stands at an address of this process."""
    kind = np.dtype(dtype)
    if count == 0:
        return np.zeros(0, kind)
    return np.frombuffer((ctypes.c_char * (count * kind.itemsize)).from_address(at), kind).copy()
