// Reductions over the threads of a body, as bodies from TileLang ask for them (targets/cuda/lower.py): every thread gets the
// result. A tree over each warp, then the warps in their order, so the order is fixed.
#pragma once

namespace tc {

struct Sum {
  template <class E>
  TC_DEVICE static E of(E a, E b) {
    return a + b;
  }
};
struct Max {
  TC_DEVICE static float of(float a, float b) { return fmaxf(a, b); }
  TC_DEVICE static int32_t of(int32_t a, int32_t b) { return a > b ? a : b; }
};
struct Min {
  TC_DEVICE static float of(float a, float b) { return fminf(a, b); }
  TC_DEVICE static int32_t of(int32_t a, int32_t b) { return a < b ? a : b; }
};

// Over groups of N neighbouring threads: parts of a warp, or all consumers. Those need `memory`, room for an element a
// warp, which may still be in use when the reduction begins, and is when it returns.
template <class Op, int N, class E>
TC_DEVICE E reduce(E x, char* memory = nullptr) {
  constexpr int WARPS = N / LANES;
  static_assert((N == CONSUMERS || N <= LANES) && sizeof(E) == 4);
  TC_UNROLL
  for (int offset = (N < LANES ? N : LANES) / 2; offset > 0; offset /= 2)
    x = Op::of(x, __shfl_xor_sync(0xFFFFFFFF, x, offset));
  if constexpr (N > LANES) {
    E* shared = reinterpret_cast<E*>(memory);
    body_barrier();
    if (lane() == 0) shared[thread() / LANES] = x;
    body_barrier();
    x = shared[0];
    TC_UNROLL
    for (int w = 1; w < WARPS; ++w) x = Op::of(x, shared[w]);
  }
  return x;
}

}  // namespace tc
