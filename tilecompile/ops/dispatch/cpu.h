// dispatch: the distinct ids of a step's tokens with K experts each, ascending, as slots; each token's weight for each slot.
//
// More distinct ids than slots are a fault of the model (it takes min(T * K, experts) of them); the surplus is dropped,
// so that nothing is written out of bounds.
#pragma once
#include <algorithm>

template <int K>
inline void dispatch(int tokens, int slots, const int32_t* ids, int ids_stride, const float* weights, int weights_stride, int32_t* expert,
                     float* slot_weight, int slot_stride) {
  int32_t distinct[MAX_TOKENS * K];
  for (int t = 0; t < tokens; ++t) std::copy_n(ids + t * ids_stride, K, distinct + t * K);
  std::sort(distinct, distinct + tokens * K);
  const int count = std::min<int>(std::unique(distinct, distinct + tokens * K) - distinct, slots);
  for (int s = 0; s < slots; ++s) expert[s] = s < count ? distinct[s] : -1;
  for (int t = 0; t < tokens; ++t) {
    float* out = slot_weight + t * slot_stride;
    std::fill_n(out, slots, 0.f);
    for (int j = 0; j < K; ++j) {
      const int32_t id = ids[t * ids_stride + j];
      const int s = std::lower_bound(distinct, distinct + count, id) - distinct;
      if (s < count && distinct[s] == id) out[s] += weights[t * weights_stride + j];
    }
  }
}
