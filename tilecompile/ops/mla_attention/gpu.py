"""The GPU body of mla_attention: softmax over chunks of rows, which are gathered into shared memory once for 8 heads.

A warp keeps a head's softmax, that of Milakov and Gimelshein (arXiv 1805.02867): sums are scaled down whenever a chunk
has a larger score. Orders of summation depend on neither the tile nor the other tokens: a score is PIECES sums over the
columns, added in order; the denominator is a tree over each chunk, chunk by chunk; an output adds rows as selected.
"""

from tilecompile.ir.node import OpNode
from tilecompile.ops.context import is_part
from tilecompile.ops.kit.body import CPP, STORED, THREADS, Flavor, PrimFunc, TileBody, extent, tokens_of

ROWS = 32
"""Rows of a chunk."""

PIECES = THREADS // ROWS
"""Threads that share a score."""

HEADS = THREADS // ROWS
"""Heads that share gathered rows: a warp each."""

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
        *(f"{float(node.attrs['scale'])!r}f", tokens_of(y)),
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
    """Heads lo:hi of all tokens, HEADS at a time. With `part`, sums, largest score and denominator."""
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
        n: T.int32,
    ):
        with T.Kernel(1, threads=THREADS):
            rows = f.shared((ROWS, pitch), STORED[dtype])
            query = f.shared((HEADS, width), "float32")
            pieces = f.shared((PIECES, HEADS, ROWS), "float32")
            weights = f.shared((HEADS, ROWS), "float32")
            factor = f.shared((HEADS,), "float32")
            ends = f.shared((2, HEADS), "float32")
            dot = f.fragment((THREADS,), "float32")
            sums = f.fragment((THREADS, HEADS, each), "float32")
            score = f.fragment((HEADS, ROWS), "float32")
            most = f.fragment((HEADS, ROWS), "float32")  # the same in all threads of a warp, as are the next two
            before = f.fragment((HEADS, ROWS), "float32")
            total = f.fragment((HEADS, ROWS), "float32")
            peak = f.fragment((HEADS,), "float32")
            added = f.fragment((HEADS,), "float32")
            counted = f.fragment((THREADS,), "int32")
            selected = f.fragment((1,), "int32")
            for t in T.serial(f.present(n, tokens)):
                if part:
                    for i in f.lanes():
                        counted[i] = 0
                        for k in T.serial(T.ceildiv(topk, THREADS)):
                            if k * THREADS + i < topk:
                                counted[i] += T.cast(selection[t * s_token + k * THREADS + i] >= 0, "int32")
                    T.reduce_sum(counted, selected, dim=0)
                else:
                    selected[0] = T.min(position + t + 1, topk)
                for g in T.serial(T.ceildiv(hi - lo, HEADS)):
                    first = lo + g * HEADS
                    for k in T.unroll(T.ceildiv(HEADS * width, THREADS), unroll_factor=2):
                        for i in f.lanes():
                            w = T.truncdiv(k * THREADS + i, width)
                            d = T.truncmod(k * THREADS + i, width)
                            if w < T.min(HEADS, hi - first):
                                if d < latent:
                                    query[w, d] = q_latent[t * l_strides[0] + (first + w) * l_strides[1] + d] * scale
                                else:
                                    query[w, d] = (
                                        q_rope[t * r_strides[0] + (first + w) * r_strides[1] + d - latent] * scale
                                    )
                    for w, r in f.parallel(HEADS, ROWS):
                        most[w, r] = -T.infinity("float32")
                        total[w, r] = 0
                    for i in f.lanes():
                        for h in T.unroll(HEADS):
                            for j in T.unroll(each):
                                sums[i, h, j] = 0
                    for c in T.serial(T.ceildiv(selected[0], ROWS)):
                        for k in T.unroll(T.ceildiv(ROWS * width, THREADS), unroll_factor=4):
                            for i in f.lanes():
                                r = T.truncdiv(k * THREADS + i, width)
                                d = T.truncmod(k * THREADS + i, width)
                                if r < ROWS:
                                    if c * ROWS + r < selected[0]:
                                        rows[r, d] = cache[selection[t * s_token + c * ROWS + r] * row + d]
                                    else:
                                        rows[r, d] = 0
                        for h in T.serial(T.min(HEADS, hi - first)):
                            for i in f.lanes():
                                dot[i] = 0
                                for d in T.unroll(piece, unroll_factor=4):
                                    if T.truncdiv(i, ROWS) * piece + d < width:
                                        dot[i] += query[h, T.truncdiv(i, ROWS) * piece + d] * f.widen(
                                            rows[T.truncmod(i, ROWS), T.truncdiv(i, ROWS) * piece + d], dtype
                                        )
                                pieces[T.truncdiv(i, ROWS), h, T.truncmod(i, ROWS)] = dot[i]
                        for w, r in f.parallel(HEADS, ROWS):
                            score[w, r] = -T.infinity("float32")
                            if c * ROWS + r < selected[0] and first + w < hi:
                                score[w, r] = 0
                                for p in T.serial(PIECES):
                                    score[w, r] += pieces[p, w, r]
                        T.reduce_max(score, peak, dim=1)
                        for w, r in f.parallel(HEADS, ROWS):
                            before[w, r] = most[w, r]
                            most[w, r] = T.max(most[w, r], peak[w])
                            if first + w < hi:
                                score[w, r] = T.exp(score[w, r] - most[w, r])
                            else:
                                score[w, r] = 0
                            weights[w, r] = score[w, r]
                        T.reduce_sum(score, added, dim=1)
                        for w, r in f.parallel(HEADS, ROWS):
                            before[w, r] = T.exp(before[w, r] - most[w, r])
                            total[w, r] = total[w, r] * before[w, r] + added[w]
                            if r == 0:
                                factor[w] = before[w, r]
                        for i in f.lanes():
                            for h in T.unroll(HEADS):
                                if first + h < hi:
                                    for j in T.unroll(each):
                                        sums[i, h, j] *= factor[h]
                                        if j * THREADS + i < latent:
                                            for r in T.unroll(ROWS, unroll_factor=4):
                                                sums[i, h, j] += weights[h, r] * f.widen(
                                                    rows[r, j * THREADS + i], dtype
                                                )
                    for w, r in f.parallel(HEADS, ROWS):
                        if r == 0:
                            ends[0, w] = T.if_then_else(selected[0] > 0, most[w, r], T.float32(0))
                            ends[1, w] = total[w, r]
                    for i in f.lanes():
                        for h in T.unroll(HEADS):
                            if first + h < hi:
                                for j in T.unroll(each):
                                    if j * THREADS + i < latent:
                                        y[t * y_strides[0] + (first + h) * y_strides[1] + j * THREADS + i] = sums[
                                            i, h, j
                                        ] / (T.float32(1) if part else ends[1, h])
                                if part and i < 2:
                                    y[t * y_strides[0] + (first + h) * y_strides[1] + latent + i] = ends[i, h]

    return body
