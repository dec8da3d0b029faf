// layer_norm: y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * w + b over the last dimension of each token.
//
// Both sums have 16 partial sums over k mod 16, added by lane_sum. The variance is that of the centred values, in a pass
// of its own: the difference of two means of squares would lose what a large mean leaves of an f32.
#pragma once

template <int N>
inline void layer_norm_row(const float* x, const float* w, const float* b, float* y, float eps) {
  v16 s = zero();
  each_block(0, N, [&](int k, int n) { s = s + load_n(x + k, n); });
  const v16 mean = splat(lane_sum(s) / float(N));
  s = zero();
  each_block(0, N, [&](int k, int n) {
    v16 d = load_n(x + k, n) - mean;
    if (n < 16) d = keep_n(d, n);  // missing elements are no deviations from the mean
    s = fma(d, d, s);
  });
  const v16 scale = splat(1.f / std::sqrt(lane_sum(s) / float(N) + eps));
  each_block(0, N, [&](int k, int n) {
    store_n(y + k, fma((load_n(x + k, n) - mean) * scale, load_n(w + k, n), load_n(b + k, n)), n);
  });
}

template <int N>
inline void layer_norm(int tokens, const float* x, int x_stride, const float* w, const float* b, float* y, int y_stride, float eps) {
  for (int t = 0; t < tokens; ++t) layer_norm_row<N>(x + t * x_stride, w, b, y + t * y_stride, eps);
}
