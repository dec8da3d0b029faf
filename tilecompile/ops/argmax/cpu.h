// argmax: the lowest index of the largest logit; NaN never wins, and the result is 0 if all are NaN.
//
// One pass finds the largest value and the first chunk that contains it (a maximum doesn't depend on the order); then
// only that chunk is searched for the index.
#pragma once

constexpr int ARGMAX_CHUNK = 1024;

// The largest of n values, or -infinity; `maximum` keeps its second operand where the first is NaN.
inline float largest(const float* x, int n) {
  v16 m[4];
  for (int q = 0; q < 4; ++q) m[q] = splat(-INFINITY);
  int i = 0;
  for (; i + 64 <= n; i += 64)
    for (int q = 0; q < 4; ++q) m[q] = maximum(load(x + i + 16 * q), m[q]);
  for (; i + 16 <= n; i += 16) m[0] = maximum(load(x + i), m[0]);
  float best = lane_max(maximum(maximum(m[0], m[1]), maximum(m[2], m[3])));
  for (; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

inline int argmax_row(const float* x, int V) {
  float best = -INFINITY;
  int chunk = 0;
  for (int i = 0; i < V; i += ARGMAX_CHUNK) {
    const float m = largest(x + i, V - i < ARGMAX_CHUNK ? V - i : ARGMAX_CHUNK);
    if (m > best) best = m, chunk = i;
  }
  for (int i = chunk; i < V; ++i)
    if (x[i] == best) return i;
  return 0;
}

inline void argmax(int tokens, int V, const float* x, int x_stride, int32_t* y, int y_stride) {
  for (int t = 0; t < tokens; ++t) y[t * y_stride] = argmax_row(x + size_t(t) * x_stride, V);
}
