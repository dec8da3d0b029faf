"""The GPU body of mla_attention: a head's softmax over chunks of rows, which are gathered into shared memory.

The softmax is that of Milakov and Gimelshein (arXiv 1805.02867): sums are scaled down whenever a chunk has a larger
score. Orders of summation depend on neither the tile nor the other tokens: a score is PIECES sums over the columns,
added in order; the denominator is added row by row, and so is an output.
"""

from tilecompile.cuda.body import CPP, STORED, THREADS, Flavor, PrimFunc, TileBody, extent
from tilecompile.ops.base import OpNode
from tilecompile.ops.context import is_part

ROWS = 32
"""Rows of a chunk."""

PIECES = THREADS // ROWS
"""Threads that share a score."""

Strides = tuple[int, ...]


def gpu(node: OpNode) -> TileBody:
    """The body for the node's shapes and strides."""
    q_latent, q_rope, cache, selection, _, y = node.operands
    values = (
        *(q_latent.shape, q_rope.shape[2], cache.shape[0], cache.dtype, selection.shape[1], is_part(node)),
        *(q_latent.strides, q_rope.strides, cache.strides[0], selection.strides[0], y.strides),
    )
    args = (
        *("c.arg<float>(0)", "c.arg<float>(1)", f"c.arg<{CPP[cache.dtype]}>(2)", "c.arg<int32_t>(3)"),
        *("c.arg<int32_t>(4)[0]", "c.arg<float>(5)", "c.tile(0)", "c.tile(1)"),
        f"{float(node.attrs['scale'])!r}f",
    )
    return TileBody(build, values, args)


def build(
    f: Flavor,
    shape: tuple[int, int, int],
    rope: int,
    size: int,
    dtype: str,
    topk: int,
    part: bool,
    l_strides: Strides,
    r_strides: Strides,
    row: int,
    s_token: int,
    y_strides: Strides,
) -> PrimFunc:
    """Heads lo:hi of all tokens, one after the other. With `part`, sums, largest score and denominator."""
    import tilelang.language as T

    tokens, heads, latent = shape
    width = latent + rope
    piece = -(-width // PIECES)
    each = -(-latent // THREADS)
    pitch = width + (2 if dtype == "bf16" and width % 4 == 0 else 1)  # rows begin in different banks

    @T.prim_func
    def body(
        q_latent: T.Tensor((extent(shape, l_strides),), T.float32),
        q_rope: T.Tensor((extent((tokens, heads, rope), r_strides),), T.float32),
        cache: T.Tensor(((size - 1) * row + width,), STORED[dtype]),
        selection: T.Tensor(((tokens - 1) * s_token + topk,), T.int32),
        position: T.int32,
        y: T.Tensor((extent((tokens, heads, latent + 2 * int(part)), y_strides),), T.float32),
        lo: T.int32,
        hi: T.int32,
        scale: T.float32,
    ):
        with T.Kernel(1, threads=THREADS):
            rows = f.shared((ROWS, pitch), STORED[dtype])
            query = f.shared((width,), "float32")
            pieces = f.shared((PIECES, ROWS), "float32")
            weights = f.shared((ROWS,), "float32")
            dot = f.fragment((THREADS,), "float32")
            sums = f.fragment((THREADS, each), "float32")
            counted = f.fragment((THREADS,), "int32")
            selected = f.fragment((1,), "int32")
            most = T.alloc_local((1,), "float32")
            before = T.alloc_local((1,), "float32")
            total = T.alloc_local((1,), "float32")
            for t in T.serial(tokens):
                if part:
                    for i in f.lanes():
                        counted[i] = 0
                        for k in T.serial(T.ceildiv(topk, THREADS)):
                            if k * THREADS + i < topk:
                                counted[i] += T.cast(selection[t * s_token + k * THREADS + i] >= 0, "int32")
                    T.reduce_sum(counted, selected, dim=0)
                else:
                    selected[0] = T.min(position + t + 1, topk)
                for h in T.serial(lo, hi):
                    for k in T.serial(T.ceildiv(width, THREADS)):
                        for i in f.lanes():
                            if k * THREADS + i < latent:
                                query[k * THREADS + i] = (
                                    q_latent[t * l_strides[0] + h * l_strides[1] + k * THREADS + i] * scale
                                )
                            elif k * THREADS + i < width:
                                query[k * THREADS + i] = (
                                    q_rope[t * r_strides[0] + h * r_strides[1] + k * THREADS + i - latent] * scale
                                )
                    most[0] = -T.infinity("float32")
                    total[0] = 0
                    for i in f.lanes():
                        for j in T.unroll(each):
                            sums[i, j] = 0
                    for c in T.serial(T.ceildiv(selected[0], ROWS)):
                        for k in T.serial(T.ceildiv(ROWS * width, THREADS)):
                            for i in f.lanes():
                                r = T.truncdiv(k * THREADS + i, width)
                                d = T.truncmod(k * THREADS + i, width)
                                if r < ROWS:
                                    if c * ROWS + r < selected[0]:
                                        rows[r, d] = cache[selection[t * s_token + c * ROWS + r] * row + d]
                                    else:
                                        rows[r, d] = 0
                        for i in f.lanes():
                            dot[i] = 0
                            for d in T.serial(piece):
                                if T.truncdiv(i, ROWS) * piece + d < width:
                                    dot[i] += query[T.truncdiv(i, ROWS) * piece + d] * f.widen(
                                        rows[T.truncmod(i, ROWS), T.truncdiv(i, ROWS) * piece + d], dtype
                                    )
                            pieces[T.truncdiv(i, ROWS), T.truncmod(i, ROWS)] = dot[i]
                        for i in f.lanes():
                            if i < ROWS:
                                dot[i] = 0
                                for p in T.unroll(PIECES):
                                    dot[i] += pieces[p, i]
                                weights[i] = T.if_then_else(c * ROWS + i < selected[0], dot[i], -T.infinity("float32"))
                        before[0] = most[0]
                        for r in T.serial(ROWS):
                            most[0] = T.max(most[0], weights[r])
                        for i in f.lanes():
                            if i < ROWS:
                                pieces[0, i] = T.exp(weights[i] - most[0])
                        before[0] = T.exp(before[0] - most[0])
                        total[0] = total[0] * before[0]
                        for r in T.serial(ROWS):
                            total[0] += pieces[0, r]
                        for i in f.lanes():
                            for j in T.unroll(each):
                                sums[i, j] *= before[0]
                            for r in T.serial(ROWS):
                                for j in T.unroll(each):
                                    if j * THREADS + i < latent:
                                        sums[i, j] += pieces[0, r] * f.widen(rows[r, j * THREADS + i], dtype)
                    for i in f.lanes():
                        for j in T.unroll(each):
                            if j * THREADS + i < latent:
                                if part:
                                    y[t * y_strides[0] + h * y_strides[1] + j * THREADS + i] = sums[i, j]
                                else:
                                    y[t * y_strides[0] + h * y_strides[1] + j * THREADS + i] = sums[i, j] / total[0]
                        if part and i == 0:
                            y[t * y_strides[0] + h * y_strides[1] + latent] = T.if_then_else(
                                selected[0] > 0, most[0], T.float32(0)
                            )
                            y[t * y_strides[0] + h * y_strides[1] + latent + 1] = total[0]

    return body
