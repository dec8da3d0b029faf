"""The GPU body of index_score: a thread a key and half of the heads, GROUP at a time; both in shared memory.

A dot product is one sum over d in ascending order, a half adds its heads in ascending order, and the second half is
added to the first: bits depend on neither the block nor the other tokens.
"""

from tilecompile.ir.node import OpNode
from tilecompile.ops.context import Context, rows_expr
from tilecompile.ops.kit.body import CPP, STORED, THREADS, Flavor, PrimFunc, TileBody, extent, tokens_of

KEYS = 128
"""Keys at a time."""

HALVES = THREADS // KEYS

GROUP = 4
"""Heads whose dot products share what is read of a key."""

Strides = tuple[int, ...]


def gpu(node: OpNode) -> TileBody:
    """The body for the node's shapes and strides."""
    query, weight, cache, _, scores = node.operands
    context = Context.of(node)
    count, block = (context.count, context.block) if context else (1, 1)
    strides = (query.strides, weight.strides[0], cache.strides[0], scores.strides[0])
    values = (query.shape, cache.shape[0], cache.dtype, *strides, node.attrs["topk"], count, block)
    args = (
        *("c.arg<float>(0)", "c.arg<float>(1)", f"c.arg<{CPP[cache.dtype]}>(2)", "c.arg<int32_t>(3)[0]"),
        *("c.arg<float>(4)", "c.tile(0)", "c.tile(1)", "c.tile(3)", tokens_of(query)),
    )
    return TileBody(build, values, args)


def build(
    f: Flavor,
    shape: tuple[int, int, int],
    size: int,
    dtype: str,
    q_strides: Strides,
    w_token: int,
    row: int,
    s_token: int,
    topk: int,
    count: int,
    block: int,
) -> PrimFunc:
    """Positions (of a shard: rows) lo:hi, for the tokens that see more than `topk` positions."""
    import tilelang.language as T

    tokens, heads, width = shape
    groups = -(-heads // (HALVES * GROUP))
    pitch = width + (2 if dtype == "bf16" and width % 2 == 0 else 1)  # rows begin in different banks

    @T.prim_func
    def body(
        query: T.Tensor((extent(shape, q_strides),), T.float32),
        weight: T.Tensor(((tokens - 1) * w_token + heads,), T.float32),
        cache: T.Tensor(((size - 1) * row + width,), STORED[dtype]),
        position: T.int32,
        scores: T.Tensor(((tokens - 1) * s_token + size,), T.float32),
        lo: T.int32,
        hi: T.int32,
        shard: T.int32,
        n: T.int32,
    ):
        with T.Kernel(1, threads=THREADS):
            rows = f.shared((KEYS, pitch), STORED[dtype])
            queries = f.shared((HALVES * groups, width, GROUP), "float32")
            sums = f.shared((KEYS,), "float32")
            key = T.alloc_local((1,), "float32")
            dot = T.alloc_local((GROUP,), "float32")
            score = f.fragment((THREADS,), "float32")
            end = T.min(hi, rows_expr(position + f.present(n, tokens), shard, count, block))
            if position + f.present(n, tokens) > topk:
                for b in T.serial(T.ceildiv(end - lo, KEYS)):
                    for k in T.unroll(T.ceildiv(KEYS * width, THREADS), unroll_factor=8):
                        for i in f.lanes():
                            r = T.truncdiv(k * THREADS + i, width)
                            d = T.truncmod(k * THREADS + i, width)
                            if r < KEYS and lo + b * KEYS + r < end:
                                rows[r, d] = cache[(lo + b * KEYS + r) * row + d]
                    for t in T.serial(f.present(n, tokens)):
                        if position + t + 1 > topk:
                            for k in T.serial(T.ceildiv(HALVES * groups * GROUP * width, THREADS)):
                                for i in f.lanes():
                                    h = T.truncdiv(k * THREADS + i, width)
                                    d = T.truncmod(k * THREADS + i, width)
                                    if h < HALVES * groups * GROUP:
                                        if h < heads:
                                            queries[T.truncdiv(h, GROUP), d, T.truncmod(h, GROUP)] = query[
                                                t * q_strides[0] + h * q_strides[1] + d
                                            ]
                                        else:
                                            queries[T.truncdiv(h, GROUP), d, T.truncmod(h, GROUP)] = 0
                            for i in f.lanes():
                                score[i] = 0
                                for g in T.serial(groups):
                                    for j in T.unroll(GROUP):
                                        dot[j] = 0
                                    for d in T.unroll(width, unroll_factor=8):
                                        key[0] = f.widen(rows[T.truncmod(i, KEYS), d], dtype)
                                        for j in T.unroll(GROUP):
                                            dot[j] += key[0] * queries[T.truncdiv(i, KEYS) * groups + g, d, j]
                                    for j in T.unroll(GROUP):
                                        if (T.truncdiv(i, KEYS) * groups + g) * GROUP + j < heads:
                                            score[i] += weight[
                                                t * w_token + (T.truncdiv(i, KEYS) * groups + g) * GROUP + j
                                            ] * T.max(dot[j], T.float32(0))
                                if i >= KEYS:
                                    sums[i - KEYS] = score[i]
                            seen = T.min(end, rows_expr(position + t + 1, shard, count, block))
                            for i in f.lanes():
                                if i < KEYS and lo + b * KEYS + i < seen:
                                    scores[t * s_token + lo + b * KEYS + i] = score[i] + sums[i]

    return body
