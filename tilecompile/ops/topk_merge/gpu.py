"""The GPU body of topk_merge: topk_select's steps on the high words of all keys, then on the low words of its ties.

Keys that count differ, so among the candidates of equal score the low words decide, and no tie is left.
"""

from tilecompile.ir.node import OpNode
from tilecompile.ops.context import Context, rows_expr
from tilecompile.ops.kit.body import THREADS, Flavor, PrimFunc, TileBody, tokens_of
from tilecompile.ops.kit.selection import BINS, LOWEST, Selector, signed


def gpu(node: OpNode) -> TileBody:
    """The body for the node's shapes and strides."""
    keys, _, selection = node.operands
    context = Context(*node.attrs["context"])
    values = (*keys.shape[:3], keys.strides[0], node.attrs["topk"], selection.shape[1], selection.strides[0])
    args = ("c.arg<int32_t>(0)", "c.arg<int32_t>(1)[0]", "c.arg<int32_t>(2)", "c.tile(3)", tokens_of(keys))
    return TileBody(build, (*values, context.count, context.block), args)


def build(
    f: Flavor,
    tokens: int,
    shards: int,
    room: int,
    k_token: int,
    topk: int,
    size: int,
    o_token: int,
    count: int,
    block: int,
) -> PrimFunc:
    """Each thread then takes a stretch of the own candidates, as in topk_select."""
    import tilelang.language as T

    all_keys = shards * room
    stretch = -(-room // THREADS)

    @T.macro
    def load_high(own, i, source, at):
        own[i] = signed(source[0][at * 2 + 1])

    @T.macro
    def load_low(own, i, source, at):
        own[i] = LOWEST  # as small as that of no candidate
        if signed(source[0][at * 2 + 1]) == source[1][0]:
            own[i] = signed(source[0][at * 2])

    high, low = Selector(f, load_high), Selector(f, load_low)

    @T.prim_func
    def body(
        keys: T.Tensor(((tokens - 1) * k_token + all_keys * 2,), T.int32),
        position: T.int32,
        selection: T.Tensor(((tokens - 1) * o_token + size,), T.int32),
        shard: T.int32,
        n: T.int32,
    ):
        with T.Kernel(1, threads=THREADS):
            bins = f.shared((BINS,), "int32")
            sums = f.shared((2, THREADS), "int32")
            found = f.shared((2,), "int32")
            own = f.fragment((THREADS,), "int32")
            part = f.fragment((THREADS,), "int32")
            equal = f.fragment((THREADS,), "int32")
            state = T.alloc_local((6,), "int32")
            least = T.alloc_local((1,), "int32")
            for t in T.serial(f.present(n, tokens)):
                if position + t + 1 <= topk:
                    for k in T.serial(T.ceildiv(size, THREADS)):
                        for i in f.lanes():
                            if k * THREADS + i < size:
                                selection[t * o_token + k * THREADS + i] = T.if_then_else(
                                    k * THREADS + i < rows_expr(position + t + 1, shard, count, block),
                                    k * THREADS + i,
                                    -1,
                                )
                else:
                    at = t * (k_token // 2)
                    high.find(bins, sums, found, own, part, equal, state, (keys,), at, all_keys, topk)
                    least[0] = state[0]
                    low.find(bins, sums, found, own, part, equal, state, (keys, least), at, all_keys, state[2])
                    for i in f.lanes():
                        part[i] = 0
                        for k in T.serial(stretch):
                            if i * stretch + k < room:
                                own[i] = signed(keys[t * k_token + (shard * room + i * stretch + k) * 2 + 1])
                                equal[i] = signed(keys[t * k_token + (shard * room + i * stretch + k) * 2])
                                if own[i] > least[0] or (own[i] == least[0] and equal[i] >= state[0]):
                                    part[i] += 1
                        sums[0, i] = part[i]
                    high.scan(sums)
                    for i in f.lanes():
                        part[i] = sums[0, i] - part[i]
                        for k in T.serial(stretch):
                            if i * stretch + k < room:
                                own[i] = signed(keys[t * k_token + (shard * room + i * stretch + k) * 2 + 1])
                                equal[i] = signed(keys[t * k_token + (shard * room + i * stretch + k) * 2])
                                if own[i] > least[0] or (own[i] == least[0] and equal[i] >= state[0]):
                                    selection[t * o_token + part[i]] = rows_expr(
                                        -1 - signed(equal[i]), shard, count, block
                                    )
                                    part[i] += 1
                    for k in T.serial(T.ceildiv(size, THREADS)):
                        for i in f.lanes():
                            if k * THREADS + i < size and k * THREADS + i >= sums[0, THREADS - 1]:
                                selection[t * o_token + k * THREADS + i] = -1

    return body
