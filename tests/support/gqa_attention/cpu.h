// gqa_attention: scores of all positions that a token sees, their softmax, and the sum of the values, head by head.
#pragma once

template <int D, int GROUP>
inline void gqa_attention(const Call& c, int tokens, const float* query, int q_token, int q_head, const float* keys, int k_row,
                          int k_head, const float* values, int v_row, int v_head, int position, float scale, float* y,
                          int y_token, int y_head) {
  float* weight = reinterpret_cast<float*>(c.scratch->base);
  c.scratch->norm_x = nullptr;  // the scratch memory no longer holds a norm
  for (int t = 0; t < tokens; ++t)
    for (int h = c.tile(0) * GROUP; h < c.tile(1) * GROUP; ++h) {
      const float* q = query + t * q_token + h * q_head;
      const int g = h / GROUP, seen = position + t + 1;
      float largest = -INFINITY, sum = 0.f;
      for (int s = 0; s < seen; ++s) {
        float dot = 0.f;
        for (int d = 0; d < D; ++d) dot += q[d] * keys[size_t(s) * k_row + g * k_head + d];
        weight[s] = dot * scale;
        if (weight[s] > largest) largest = weight[s];
      }
      for (int s = 0; s < seen; ++s) sum += weight[s] = std::exp(weight[s] - largest);
      for (int d = 0; d < D; ++d) {
        float total = 0.f;
        for (int s = 0; s < seen; ++s) total += weight[s] * values[size_t(s) * v_row + g * v_head + d];
        y[t * y_token + h * y_head + d] = total / sum;
      }
    }
}
