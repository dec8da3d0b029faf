"""The GPU body of share_selection: THREADS neighbouring entries at a time, for the tokens of the step."""

from tilecompile.ir.node import OpNode
from tilecompile.ops.context import Context, rows_expr
from tilecompile.ops.kit.body import THREADS, Flavor, PrimFunc, TileBody, tokens_of


def gpu(node: OpNode) -> TileBody:
    """The body for the node's shapes and shard of the context."""
    state, _, selection, last = node.operands
    context = Context.of(node)
    count, block = (context.count, context.block) if context else (1, 1)
    values = (*selection.shape, state.strides[0], selection.strides[0], last.strides[0], count, block)
    pointers = ("c.arg<int32_t>(0)", "c.arg<int32_t>(1)[0]", "c.arg<int32_t>(2)", "c.arg<int32_t>(3)")
    return TileBody(build, values, (*pointers, "c.tile(3)", tokens_of(selection)))


def build(
    f: Flavor, tokens: int, width: int, s_token: int, y_token: int, last_token: int, count: int, block: int
) -> PrimFunc:
    """Entries that the state has, rows after them, and the rest of each token's row."""
    import tilelang.language as T

    @T.prim_func
    def body(
        state: T.Tensor(((tokens - 1) * s_token + 1 + width,), T.int32),
        position: T.int32,
        selection: T.Tensor(((tokens - 1) * y_token + width,), T.int32),
        last: T.Tensor(((tokens - 1) * last_token + 1,), T.int32),
        shard: T.int32,
        n: T.int32,
    ):
        with T.Kernel(1, threads=THREADS):
            counted = f.fragment((THREADS,), "int32")
            taken = f.fragment((1,), "int32")
            rows = T.alloc_local((2,), "int32")
            for t in T.serial(f.present(n, tokens)):
                for i in f.lanes():
                    counted[i] = 0
                    for k in T.serial(T.ceildiv(width, THREADS)):
                        if k * THREADS + i < width:
                            counted[i] += T.cast(state[t * s_token + 1 + k * THREADS + i] >= 0, "int32")
                T.reduce_sum(counted, taken, dim=0)
                # The first row after the state's, and how many of them there are and have room.
                rows[0] = rows_expr(state[t * s_token] + 1, shard, count, block)
                rows[1] = T.max(rows_expr(position + t + 1, shard, count, block) - rows[0], 0)
                rows[1] = T.min(rows[1], width - taken[0])
                for k in T.serial(T.ceildiv(width, THREADS)):
                    for i in f.lanes():
                        if k * THREADS + i < width:
                            if k * THREADS + i < taken[0]:
                                selection[t * y_token + k * THREADS + i] = state[t * s_token + 1 + k * THREADS + i]
                            elif k * THREADS + i < taken[0] + rows[1]:
                                selection[t * y_token + k * THREADS + i] = rows[0] + k * THREADS + i - taken[0]
                            else:
                                selection[t * y_token + k * THREADS + i] = -1
                for i in f.lanes():
                    if i == 0:
                        last[t * last_token] = taken[0] + rows[1] - 1

    return body
