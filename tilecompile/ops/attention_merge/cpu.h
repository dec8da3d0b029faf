// attention_merge: y = sum_s f[s] * p[s] / sum_s f[s] * l[s] for each head, where f[s] = e^(m[s] - largest m); the parts
// (p of R floats, m, l) are added in their order. A part with l = 0 has no position and is ignored.
#pragma once

template <int PARTS, int R>
inline void attention_merge(int tokens, const float* parts, size_t p_token, size_t p_part, int p_head, float* y, int y_token,
                            int y_head, int head_begin, int head_end) {
  for (int t = 0; t < tokens; ++t)
    for (int h = head_begin; h < head_end; ++h) {
      const float* part = parts + t * p_token + size_t(h) * p_head;
      float factor[PARTS], largest = -INFINITY, sum = 0.f;
      for (int s = 0; s < PARTS; ++s) {
        const float* end = part + s * p_part + R;
        if (end[1] != 0.f && end[0] > largest) largest = end[0];
      }
      for (int s = 0; s < PARTS; ++s) {
        const float* end = part + s * p_part + R;
        alignas(64) float e[16];
        store(e, exp(splat(end[0] - largest)));
        factor[s] = end[1] != 0.f ? e[0] : 0.f;
        sum += factor[s] * end[1];
      }
      const v16 scale = splat(1.f / sum);
      each_block(0, R, [&](int i, int n) INLINED {
        v16 a = zero();
        for (int s = 0; s < PARTS; ++s) a = fma(splat(factor[s]), load_n(part + s * p_part + i, n), a);
        store_n(y + t * y_token + h * y_head + i, a * scale, n);
      });
    }
}
