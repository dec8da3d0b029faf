"""Windows: which ATen views are strided windows of their tensor, and which window each shows.

A window keeps dimension 0 whole: tokens, or rows of a cache. What would cross it, or needs a copy, gives None.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from tilecompile.ir.node import View


def _reshape(view: View, shape: list[int]) -> View | None:
    size = 1
    for s in view.shape:
        size *= s
    known = 1
    for s in shape:
        known *= s if s != -1 else 1
    shape = [size // known if s == -1 else s for s in shape]
    strides = _reshaped_strides(view, shape)
    if strides is None or (view.shape and shape[0] != view.shape[0]):
        return None
    return View(view.tensor, tuple(shape), strides, view.offset, view.dtype)


def _reshaped_strides(view: View, shape: list[int]) -> tuple[int, ...] | None:
    # The meta device knows which reshapes are views.
    try:
        meta = torch.empty_strided(view.shape, view.strides, device="meta").view(shape)
    except RuntimeError:
        return None
    return tuple(meta.stride())


def _slice(view: View, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> View | None:
    dim %= len(view.shape)
    begin, stop, _ = slice(start, end, step).indices(view.shape[dim])
    if step != 1 or (dim == 0 and (begin, stop) != (0, view.shape[0])):
        return None
    shape = (*view.shape[:dim], stop - begin, *view.shape[dim + 1 :])
    return View(view.tensor, shape, view.strides, view.offset + begin * view.strides[dim], view.dtype)


def _split(view: View, sizes: int | list[int], dim: int = 0) -> list[View] | None:
    total = view.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, total - i) for i in range(0, total, sizes)]
    parts, begin = [], 0
    for size in sizes:
        part = _slice(view, dim, begin, begin + size)
        if part is None:
            return None
        parts.append(part)
        begin += size
    return parts


def _unsqueeze(view: View, dim: int) -> View | None:
    dim %= len(view.shape) + 1
    shape = (*view.shape[:dim], 1, *view.shape[dim:])
    strides = (*view.strides[:dim], 1, *view.strides[dim:])
    return None if dim == 0 else View(view.tensor, shape, strides, view.offset, view.dtype)


def _squeeze(view: View, dim: int) -> View | None:
    dim %= len(view.shape)
    if dim == 0:
        return None
    if view.shape[dim] != 1:
        return view
    shape, strides = view.shape[:dim] + view.shape[dim + 1 :], view.strides[:dim] + view.strides[dim + 1 :]
    return View(view.tensor, shape, strides, view.offset, view.dtype)


VIEWS: dict[str, Callable[..., View | list[View] | None]] = {
    "view.default": _reshape,
    "reshape.default": _reshape,
    "slice.Tensor": _slice,
    "split.Tensor": _split,
    "split_with_sizes.default": _split,
    "unsqueeze.default": _unsqueeze,
    "squeeze.dim": _squeeze,
    "alias.default": lambda view: view,
    "detach.default": lambda view: view,
    "contiguous.default": lambda view: view if View.of(view.tensor, view.shape, view.dtype) == view else None,
}
"""ATen overload to the window that it shows; None where it isn't one within the rows of its tensor."""
