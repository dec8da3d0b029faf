"""The GPU body of argmax: each thread's best of every THREADS-th logit, then the best of all, the lowest first."""

from tilecompile.ir.node import OpNode
from tilecompile.ops.kit.body import THREADS, Flavor, PrimFunc, TileBody, tokens_of


def gpu(node: OpNode) -> TileBody:
    """The body for the node's shapes."""
    logits, y = node.operands
    args = ("c.arg<float>(0)", "c.arg<int32_t>(1)", tokens_of(logits))
    return TileBody(build, (*logits.shape, logits.strides[0], y.strides[0]), args)


def build(f: Flavor, tokens: int, size: int, x_token: int, y_token: int) -> PrimFunc:
    """Builds the `prim_func`. A comparison with NaN is false, so NaN never wins."""
    import tilelang.language as T

    @T.prim_func
    def body(
        x: T.Tensor(((tokens - 1) * x_token + size,), T.float32),
        y: T.Tensor(((tokens - 1) * y_token + 1,), T.int32),
        n: T.int32,
    ):
        with T.Kernel(1, threads=THREADS):
            best = f.fragment((THREADS,), "float32")
            first = f.fragment((THREADS,), "int32")
            largest = f.fragment((1,), "float32")
            chosen = f.fragment((1,), "int32")
            for t in T.serial(f.present(n, tokens)):
                for i in f.lanes():
                    best[i] = -T.infinity("float32")
                    first[i] = size
                    for k in T.serial(T.ceildiv(size, THREADS)):
                        if k * THREADS + i < size:
                            v = x[t * x_token + k * THREADS + i]
                            if v > best[i] or (v == best[i] and first[i] == size):
                                best[i] = v
                                first[i] = k * THREADS + i
                T.reduce_max(best, largest, dim=0)
                for i in f.lanes():
                    if best[i] != largest[0]:
                        first[i] = size
                T.reduce_min(first, chosen, dim=0)
                for i in f.lanes():
                    if i == 0:
                        y[t * y_token] = T.if_then_else(chosen[0] == size, 0, chosen[0])

    return body
