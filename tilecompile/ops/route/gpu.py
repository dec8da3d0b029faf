"""The GPU body of route: a warp a token; each choice is the largest of 32 threads' best, the lowest index first.

The weights are summed in the order of choice.
"""

from typing import Any

from tilecompile.ir.node import OpNode
from tilecompile.ops.kit.body import THREADS, Flavor, PrimFunc, TileBody, tokens_of
from tilecompile.runtime.format import BLOCK

WARPS, LANES = BLOCK.warps, BLOCK.lanes


def gpu(node: OpNode) -> TileBody:
    """The body for the node's shapes."""
    logits, _, ids, weights = node.operands
    a = node.attrs
    args = ("c.arg<float>(0)", "c.arg<float>(1)", "c.arg<int32_t>(2)", "c.arg<float>(3)", tokens_of(logits))
    values = (*logits.shape, logits.strides[0], a["topk"], ids.strides[0], weights.strides[0])
    return TileBody(build, (*values, bool(a["normalize"]), float(a["scale"])), args)


def build(
    f: Flavor,
    tokens: int,
    experts: int,
    l_token: int,
    topk: int,
    i_token: int,
    w_token: int,
    normalize: bool,
    scale: float,
) -> PrimFunc:
    """Thread l of a warp has experts l, l + 32, ...; as many tokens at a time as there are warps."""
    import tilelang.language as T

    each = -(-experts // LANES)

    def result(weight: Any, total: Any) -> Any:
        return (weight / (total + 1e-20) if normalize else weight) * scale

    @T.prim_func
    def body(
        logits: T.Tensor(((tokens - 1) * l_token + experts,), T.float32),
        bias: T.Tensor((experts,), T.float32),
        ids: T.Tensor(((tokens - 1) * i_token + topk,), T.int32),
        weights: T.Tensor(((tokens - 1) * w_token + topk,), T.float32),
        n: T.int32,
    ):
        with T.Kernel(1, threads=THREADS):
            score = f.fragment((WARPS, LANES, each), "float32")
            key = f.fragment((WARPS, LANES, each), "float32")
            best = f.fragment((WARPS, LANES), "float32")
            first = f.fragment((WARPS, LANES), "int32")
            weight = f.fragment((WARPS, LANES), "float32")
            total = f.fragment((WARPS, LANES), "float32")
            chosen = f.fragment((WARPS, LANES, topk), "float32")
            largest = f.fragment((WARPS,), "float32")
            lowest = f.fragment((WARPS,), "int32")
            value = f.fragment((WARPS,), "float32")
            for w, l in f.parallel(WARPS, LANES):
                total[w, l] = 0
                for j in T.unroll(each):
                    score[w, l, j] = 0
                    key[w, l, j] = -T.infinity("float32")
                    if w < f.present(n, tokens) and j * LANES + l < experts:
                        score[w, l, j] = 1 / (1 + T.exp(-logits[w * l_token + j * LANES + l]))
                        key[w, l, j] = score[w, l, j] + bias[j * LANES + l]
            for c in T.unroll(topk):
                for w, l in f.parallel(WARPS, LANES):
                    best[w, l] = -T.infinity("float32")
                    first[w, l] = experts - 1
                    for j in T.unroll(each):
                        if key[w, l, j] > best[w, l]:
                            best[w, l] = key[w, l, j]
                            first[w, l] = j * LANES + l
                T.reduce_max(best, largest, dim=1)
                for w, l in f.parallel(WARPS, LANES):
                    if best[w, l] != largest[w]:
                        first[w, l] = experts - 1
                T.reduce_min(first, lowest, dim=1)
                for w, l in f.parallel(WARPS, LANES):
                    weight[w, l] = 0
                    for j in T.unroll(each):
                        if j * LANES + l == lowest[w]:
                            weight[w, l] = score[w, l, j]
                            key[w, l, j] = -T.infinity("float32")
                T.reduce_max(weight, value, dim=1)
                for w, l in f.parallel(WARPS, LANES):
                    total[w, l] += value[w]
                    chosen[w, l, c] = value[w]
                    if w < f.present(n, tokens) and l == 0:
                        ids[w * i_token + c] = lowest[w]
            for w, l in f.parallel(WARPS, LANES):
                for c in T.unroll(topk):
                    if w < f.present(n, tokens) and l == 0:
                        weights[w * w_token + c] = result(chosen[w, l, c], total[w, l])

    return body
