"""The GPU body of cache_append."""

from tilecompile.ir.node import OpNode
from tilecompile.ops.context import Context
from tilecompile.ops.kit.body import CPP, STORED, THREADS, Flavor, PrimFunc, TileBody, tokens_of


def gpu(node: OpNode) -> TileBody:
    """The body for the node's shapes and shard of the context."""
    cache, x, _ = node.inputs
    context = Context.of(node)
    count, block = (context.count, context.block) if context else (1, 1)
    values = (*x.shape, x.strides[0], cache.shape[0], cache.strides[0], cache.dtype, node.attrs["column"], count, block)
    args = (f"c.arg<{CPP[cache.dtype]}>(0)", "c.arg<float>(1)", "c.arg<int32_t>(2)[0]", "c.tile(3)", tokens_of(x))
    return TileBody(build, values, args)


def build(
    f: Flavor,
    tokens: int,
    width: int,
    x_token: int,
    rows: int,
    row: int,
    dtype: str,
    column: int,
    count: int,
    block: int,
) -> PrimFunc:
    """All columns of all tokens' rows that the cache holds."""
    import tilelang.language as T

    from tilecompile.ops.context import rows_expr

    @T.prim_func
    def body(
        cache: T.Tensor((rows * row,), STORED[dtype]),
        x: T.Tensor(((tokens - 1) * x_token + width,), T.float32),
        position: T.int32,
        shard: T.int32,
        n: T.int32,
    ):
        with T.Kernel(1, threads=THREADS):
            for t in T.serial(f.present(n, tokens)):
                at = rows_expr(position + t, shard, count, block)
                after = rows_expr(position + t + 1, shard, count, block)
                if at < rows and at != after:
                    for k in T.serial(T.ceildiv(width, THREADS)):
                        for i in f.lanes():
                            if k * THREADS + i < width:
                                cache[at * row + column + k * THREADS + i] = f.narrow(
                                    x[t * x_token + k * THREADS + i], dtype
                                )

    return body
