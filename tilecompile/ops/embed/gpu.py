"""The GPU body of embed."""

from tilecompile.ir.node import OpNode
from tilecompile.ops.kit.body import CPP, STORED, THREADS, Flavor, PrimFunc, TileBody, tokens_of


def gpu(node: OpNode) -> TileBody:
    """The body for the node's shapes."""
    ids, table, y = node.operands
    args = (
        *("c.arg<int32_t>(0)", f"c.arg<{CPP[table.dtype]}>(1)", "c.arg<float>(2)"),
        *("c.tile(0)", "c.tile(1)", tokens_of(y)),
    )
    values = (*y.shape, ids.strides[0], table.shape[0], table.strides[0], table.dtype, y.strides[0])
    return TileBody(build, values, args)


def build(f: Flavor, tokens: int, size: int, ids_token: int, rows: int, row: int, dtype: str, y_token: int) -> PrimFunc:
    """Columns lo:hi of all tokens."""
    import tilelang.language as T

    @T.prim_func
    def body(
        ids: T.Tensor(((tokens - 1) * ids_token + 1,), T.int32),
        table: T.Tensor(((rows - 1) * row + size,), STORED[dtype]),
        y: T.Tensor(((tokens - 1) * y_token + size,), T.float32),
        lo: T.int32,
        hi: T.int32,
        n: T.int32,
    ):
        with T.Kernel(1, threads=THREADS):
            for t in T.serial(f.present(n, tokens)):
                for k in T.serial(T.ceildiv(hi - lo, THREADS)):
                    for i in f.lanes():
                        e = lo + k * THREADS + i
                        if e < hi:
                            y[t * y_token + e] = f.widen(table[T.cast(ids[t * ids_token], "int64") * row + e], dtype)

    return body
