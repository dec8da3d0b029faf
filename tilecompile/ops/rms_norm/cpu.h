// rms_norm: y = x / sqrt(mean(x^2) + eps) * w over the last dimension of each token.
//
// Also the prologue of operators that a norm was folded into: `normed` leaves the result in the thread's scratch memory
// and finds it there again when the thread's next instruction asks for the same norm in the same step.
#pragma once

template <int K>
inline void rms_norm_row(const float* x, const float* w, float* y, float eps) {
  v16 s = zero();
  int k = 0;
  for (; k + PANEL <= K; k += PANEL) {
    const v16 v = load(x + k);
    s = fma(v, v, s);
  }
  if (k < K) {
    const v16 v = load_n(x + k, K - k);
    s = fma(v, v, s);
  }
  const v16 scale = splat(1.f / std::sqrt(lane_sum(s) / float(K) + eps));
  for (k = 0; k < K; k += PANEL) store_n(y + k, load_n(x + k, K - k) * scale * load_n(w + k, K - k), K - k);
}

template <int K>
inline void rms_norm(int tokens, const float* x, int x_stride, const float* w, float* y, int y_stride, float eps) {
  for (int t = 0; t < tokens; ++t) rms_norm_row<K>(x + t * x_stride, w, y + t * y_stride, eps);
}

// The normed x as [tokens][K] in scratch memory.
template <int K>
inline const float* normed(const Call& c, int tokens, const float* x, int stride, const float* w, float eps) {
  Scratch& s = *c.scratch;
  float* y = reinterpret_cast<float*>(s.base);
  if (s.norm_x != x || s.norm_w != w || s.norm_tokens != tokens || s.norm_sequence != c.step->sequence) {
    rms_norm<K>(tokens, x, stride, w, y, K, eps);
    s.norm_x = x;
    s.norm_w = w;
    s.norm_tokens = tokens;
    s.norm_sequence = c.step->sequence;
  }
  return y;
}
