// dispatch: the distinct ids of T tokens with K experts each, ascending, as slots; each token's weight for each slot.
//
// More distinct ids than SLOTS are a fault of the model (it takes min(T * K, experts) slots); the surplus is dropped,
// so that nothing is written out of bounds.
#pragma once
#include <algorithm>

template <int T, int K, int SLOTS>
inline void dispatch(const int32_t* ids, int ids_stride, const float* weights, int weights_stride, int32_t* expert,
                     float* slot_weight, int slot_stride) {
  int32_t distinct[T * K];
  for (int t = 0; t < T; ++t) std::copy_n(ids + t * ids_stride, K, distinct + t * K);
  std::sort(distinct, distinct + T * K);
  const int count = std::min<int>(std::unique(distinct, distinct + T * K) - distinct, SLOTS);
  for (int s = 0; s < SLOTS; ++s) expert[s] = s < count ? distinct[s] : -1;
  for (int t = 0; t < T; ++t) {
    float* out = slot_weight + t * slot_stride;
    std::fill_n(out, SLOTS, 0.f);
    for (int j = 0; j < K; ++j) {
      const int32_t id = ids[t * ids_stride + j];
      const int s = std::lower_bound(distinct, distinct + count, id) - distinct;
      if (s < count && distinct[s] == id) out[s] += weights[t * weights_stride + j];
    }
  }
}
