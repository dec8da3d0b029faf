"""The GPU body of dispatch: an id's slot is how many smaller ids there are, counted by a thread for each id."""

from typing import Any

from tilecompile.ir.node import OpNode
from tilecompile.ops.kit.body import THREADS, Flavor, PrimFunc, TileBody, tokens_of


def gpu(node: OpNode) -> TileBody:
    """The body for the node's shapes. Raises ValueError for more ids than threads."""
    ids, weights, expert, slot_weight = node.operands
    if ids.shape[0] * ids.shape[1] > THREADS:
        raise ValueError(
            f"{node.name}: dispatch of {ids.shape[0]} x {ids.shape[1]} ids, at most {THREADS} are possible"
        )
    args = ("c.arg<int32_t>(0)", "c.arg<float>(1)", "c.arg<int32_t>(2)", "c.arg<float>(3)", tokens_of(ids))
    values = (*ids.shape, expert.shape[1], ids.strides[0], weights.strides[0], slot_weight.strides[0])
    return TileBody(build, values, args)


def build(f: Flavor, tokens: int, chosen: int, slots: int, i_token: int, w_token: int, s_token: int) -> PrimFunc:
    """Surplus ids are dropped, as in cpu.h."""
    import tilelang.language as T

    def count(n: Any) -> Any:
        return f.present(n, tokens) * chosen

    @T.prim_func
    def body(
        ids: T.Tensor(((tokens - 1) * i_token + chosen,), T.int32),
        weights: T.Tensor(((tokens - 1) * w_token + chosen,), T.float32),
        expert: T.Tensor((slots,), T.int32),
        slot_weight: T.Tensor(((tokens - 1) * s_token + slots,), T.float32),
        n: T.int32,
    ):
        with T.Kernel(1, threads=THREADS):
            every = f.shared((THREADS,), "int32")
            fresh = f.shared((THREADS,), "int32")
            slot = f.shared((THREADS,), "int32")
            earlier = f.fragment((THREADS,), "int32")
            number = f.fragment((THREADS,), "int32")
            total = f.fragment((THREADS,), "float32")
            for i in f.lanes():
                if i < count(n):
                    every[i] = ids[T.truncdiv(i, chosen) * i_token + T.truncmod(i, chosen)]
            for i in f.lanes():
                earlier[i] = 0
                for j in T.serial(count(n)):
                    if i < count(n) and j < i and every[j] == every[i]:
                        earlier[i] = 1
                fresh[i] = 1 - earlier[i]
            for i in f.lanes():
                number[i] = 0
                for j in T.serial(count(n)):
                    if i < count(n) and every[j] < every[i]:
                        number[i] += fresh[j]
                slot[i] = number[i]
            for k in T.serial(T.ceildiv(slots, THREADS)):
                for i in f.lanes():
                    number[i] = -1
                    for j in T.serial(count(n)):
                        if slot[j] == k * THREADS + i:
                            number[i] = every[j]
                    if k * THREADS + i < slots:
                        expert[k * THREADS + i] = number[i]
            for k in T.serial(T.ceildiv(f.present(n, tokens) * slots, THREADS)):
                for i in f.lanes():
                    total[i] = 0
                    t = T.truncdiv(k * THREADS + i, slots)
                    s = T.truncmod(k * THREADS + i, slots)
                    if t < f.present(n, tokens):
                        for j in T.serial(chosen):
                            if slot[t * chosen + j] == s:
                                total[i] += weights[t * w_token + j]
                        slot_weight[t * s_token + s] = total[i]

    return body
