"""The GPU body of topk_select, over the steps of `ops/kit/selection.py`."""

from tilecompile.ir.node import OpNode
from tilecompile.ops.kit.body import THREADS, Flavor, PrimFunc, TileBody, tokens_of
from tilecompile.ops.kit.selection import BINS, Selector, load_score


def gpu(node: OpNode) -> TileBody:
    """The body for the node's shapes and strides."""
    scores, _, selection = node.operands
    args = ("c.arg<float>(0)", "c.arg<int32_t>(1)[0]", "c.arg<int32_t>(2)", tokens_of(scores))
    return TileBody(build, (*scores.shape, scores.strides[0], node.attrs["topk"], selection.strides[0]), args)


def build(f: Flavor, tokens: int, size: int, s_token: int, topk: int, o_token: int) -> PrimFunc:
    """Token by token; one that sees at most `topk` positions gets them all, and its scores aren't read."""
    import tilelang.language as T

    steps = Selector(f, load_score())

    @T.prim_func
    def body(
        scores: T.Tensor(((tokens - 1) * s_token + size,), T.float32),
        position: T.int32,
        selection: T.Tensor(((tokens - 1) * o_token + topk,), T.int32),
        n: T.int32,
    ):
        with T.Kernel(1, threads=THREADS):
            bins = f.shared((BINS,), "int32")
            sums = f.shared((2, THREADS), "int32")
            ties = f.shared((2, THREADS), "int32")
            found = f.shared((2,), "int32")
            own = f.fragment((THREADS,), "int32")
            part = f.fragment((THREADS,), "int32")
            equal = f.fragment((THREADS,), "int32")
            state = T.alloc_local((6,), "int32")
            for t in T.serial(f.present(n, tokens)):
                seen = T.min(position + t + 1, size)
                if seen <= topk:
                    for k in T.serial(T.ceildiv(topk, THREADS)):
                        for i in f.lanes():
                            if k * THREADS + i < topk:
                                selection[t * o_token + k * THREADS + i] = T.if_then_else(
                                    k * THREADS + i < seen, k * THREADS + i, -1
                                )
                else:
                    steps.find(bins, sums, found, own, part, equal, state, scores, t * s_token, seen, topk)
                    steps.take(sums, ties, own, part, equal, state, scores, t * s_token, seen, selection, t * o_token)

    return body
