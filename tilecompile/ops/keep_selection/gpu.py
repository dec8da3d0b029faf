"""The GPU body of keep_selection: THREADS neighbouring columns at a time, for the tokens of the step."""

from tilecompile.ir.node import OpNode
from tilecompile.ops.kit.body import THREADS, Flavor, PrimFunc, TileBody, tokens_of


def gpu(node: OpNode) -> TileBody:
    """The body for the node's shapes."""
    state, selection, _ = node.inputs
    values = (*selection.shape, selection.strides[0], state.shape[1], state.strides[0])
    args = ("c.arg<int32_t>(0)", "c.arg<int32_t>(1)", "c.arg<int32_t>(2)[0]", tokens_of(selection))
    return TileBody(build, values, args)


def build(f: Flavor, tokens: int, entries: int, x_token: int, width: int, state_token: int) -> PrimFunc:
    """Position, entries and the rest of each token's row."""
    import tilelang.language as T

    @T.prim_func
    def body(
        state: T.Tensor(((tokens - 1) * state_token + width,), T.int32),
        selection: T.Tensor(((tokens - 1) * x_token + entries,), T.int32),
        position: T.int32,
        n: T.int32,
    ):
        with T.Kernel(1, threads=THREADS):
            for t in T.serial(f.present(n, tokens)):
                for k in T.serial(T.ceildiv(width, THREADS)):
                    for i in f.lanes():
                        if k * THREADS + i < width:
                            if k * THREADS + i == 0:
                                state[t * state_token] = position + t
                            elif k * THREADS + i <= entries:
                                state[t * state_token + k * THREADS + i] = selection[t * x_token + k * THREADS + i - 1]
                            else:
                                state[t * state_token + k * THREADS + i] = -1

    return body
