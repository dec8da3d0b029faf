"""The GPU body of topk_candidates: topk_select's steps on a shard's scores, and keys of what they choose."""

from tilecompile.ir.node import OpNode
from tilecompile.ops.context import Context, position_expr, rows_expr
from tilecompile.ops.kit.body import THREADS, Flavor, PrimFunc, TileBody, tokens_of
from tilecompile.ops.kit.selection import BINS, Selector, load_score, signed


def gpu(node: OpNode) -> TileBody:
    """The body for the node's shapes and strides."""
    scores, _, keys = node.operands
    context = Context(*node.attrs["context"])
    values = (*scores.shape, scores.strides[0], node.attrs["topk"], keys.shape[1], keys.strides[0])
    args = ("c.arg<float>(0)", "c.arg<int32_t>(1)[0]", "c.arg<int32_t>(2)", "c.tile(3)", tokens_of(scores))
    return TileBody(build, (*values, context.count, context.block), args)


def build(
    f: Flavor, tokens: int, size: int, s_token: int, topk: int, room: int, k_token: int, count: int, block: int
) -> PrimFunc:
    """The chosen rows are written to shared memory first, then converted to keys."""
    import tilelang.language as T

    load = load_score()
    steps = Selector(f, load)

    @T.prim_func
    def body(
        scores: T.Tensor(((tokens - 1) * s_token + size,), T.float32),
        position: T.int32,
        keys: T.Tensor(((tokens - 1) * k_token + room * 2,), T.int32),
        shard: T.int32,
        n: T.int32,
    ):
        with T.Kernel(1, threads=THREADS):
            bins = f.shared((BINS,), "int32")
            sums = f.shared((2, THREADS), "int32")
            ties = f.shared((2, THREADS), "int32")
            found = f.shared((2,), "int32")
            rows = f.shared((max(topk, 1),), "int32")
            own = f.fragment((THREADS,), "int32")
            part = f.fragment((THREADS,), "int32")
            equal = f.fragment((THREADS,), "int32")
            state = T.alloc_local((6,), "int32")
            for t in T.serial(f.present(n, tokens)):
                seen = T.min(rows_expr(position + t + 1, shard, count, block), size)
                chosen = T.if_then_else(position + t + 1 <= topk, 0, T.min(seen, topk))
                if chosen > 0 and seen > topk:
                    steps.find(bins, sums, found, own, part, equal, state, scores, t * s_token, seen, topk)
                    steps.take(sums, ties, own, part, equal, state, scores, t * s_token, seen, rows, 0)
                else:
                    for k in T.serial(T.ceildiv(topk, THREADS)):
                        for i in f.lanes():
                            if k * THREADS + i < topk:
                                rows[k * THREADS + i] = k * THREADS + i
                for k in T.serial(T.ceildiv(room, THREADS)):
                    for i in f.lanes():
                        part[i] = 0
                        own[i] = 0
                        if k * THREADS + i < chosen:
                            part[i] = rows[k * THREADS + i]
                            load(own, i, scores, t * s_token + part[i])
                            own[i] = signed(own[i])
                            part[i] = -1 - position_expr(part[i], shard, count, block)
                        if k * THREADS + i < room:
                            keys[t * k_token + (k * THREADS + i) * 2] = part[i]
                            keys[t * k_token + (k * THREADS + i) * 2 + 1] = own[i]

    return body
