// route: per token the TOPK largest of sigmoid(logits) + bias, in descending order, and the weights of those.
//
// The maximum of every block of 16 experts is kept, so that each choice compares E/16 blocks and then the lanes of
// one. Of equal values the first block and the first lane win: the lowest index. The weights are summed in the order of
// choice.
#pragma once

template <int E, int TOPK>
inline void route_token(const float* logits, const float* bias, int32_t* ids, float* weights, bool normalize,
                        float scale) {
  static_assert(TOPK <= E);
  constexpr int BLOCKS = (E + 15) / 16;
  alignas(64) float score[BLOCKS * 16], key[BLOCKS * 16];
  float top[BLOCKS];
  for (int b = 0; b < BLOCKS; ++b) {
    const int i = 16 * b, n = E - i;
    const v16 s = sigmoid(load_n(logits + i, n));
    store(score + i, s);
    store(key + i, s + load_n(bias + i, n));
    for (int l = n; l < 16; ++l) key[i + l] = -INFINITY;
    top[b] = lane_max(load(key + i));
  }
  float sum = 0.f;
  for (int j = 0; j < TOPK; ++j) {
    int best = 0;
    for (int b = 1; b < BLOCKS; ++b)
      if (top[b] > top[best]) best = b;
    // Lanes of real experts only: whatever the values are, even NaN, the id is one of an expert.
    int i = 16 * best;
    for (int l = (E - i < 16 ? E - i : 16) - 1; l > 0; --l)
      if (key[16 * best + l] == top[best]) i = 16 * best + l;
    if (key[16 * best] == top[best]) i = 16 * best;
    key[i] = -INFINITY;
    top[best] = lane_max(load(key + 16 * best));
    ids[j] = i;
    weights[j] = score[i];
    sum += score[i];
  }
  for (int j = 0; j < TOPK; ++j) weights[j] = (normalize ? weights[j] / (sum + 1e-20f) : weights[j]) * scale;
}

template <int E, int TOPK>
inline void route(int tokens, const float* logits, int logits_stride, const float* bias, int32_t* ids, int ids_stride,
                  float* weights, int weights_stride, bool normalize, float scale) {
  for (int t = 0; t < tokens; ++t)
    route_token<E, TOPK>(logits + t * logits_stride, bias, ids + t * ids_stride, weights + t * weights_stride,
                         normalize, scale);
}
