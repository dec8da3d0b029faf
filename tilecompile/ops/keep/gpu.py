"""The GPU body of keep: THREADS neighbouring columns at a time, for the tokens of the step."""

from tilecompile.ir.node import OpNode
from tilecompile.ops.kit.body import THREADS, Flavor, PrimFunc, TileBody, tokens_of


def gpu(node: OpNode) -> TileBody:
    """The body for the node's shapes; types have four bytes."""
    state, x = node.inputs
    values = (x.shape[0], x.shape[1], state.strides[0], x.strides[0])
    args = ("c.arg<uint32_t>(0)", "c.arg<uint32_t>(1)", "c.tile(0)", "c.tile(1)", tokens_of(x))
    return TileBody(build, values, args)


def build(f: Flavor, tokens: int, width: int, state_token: int, x_token: int) -> PrimFunc:
    """Columns lo:hi of the rows of the step's tokens."""
    import tilelang.language as T

    @T.prim_func
    def body(
        state: T.Tensor(((tokens - 1) * state_token + width,), T.uint32),
        x: T.Tensor(((tokens - 1) * x_token + width,), T.uint32),
        lo: T.int32,
        hi: T.int32,
        n: T.int32,
    ):
        with T.Kernel(1, threads=THREADS):
            for t in T.serial(f.present(n, tokens)):
                for k in T.serial(T.ceildiv(hi - lo, THREADS)):
                    for i in f.lanes():
                        if lo + k * THREADS + i < hi:
                            state[t * state_token + lo + k * THREADS + i] = x[t * x_token + lo + k * THREADS + i]

    return body
