// head_linear: y[t][h][n] = sum_k w[h][n][k] * x[t][h][k], one tile of heads and rows for all tokens.
//
// A tile is the panels of its heads one after the other; the activations of each head are staged before its panels.
#pragma once

namespace tc {

template <class S>
TC_DEVICE void head_linear(const Call& c, const float* x, int x_token, int x_head, float* y, int y_token, int y_head) {
  const int head_begin = c.tile(0), head_end = c.tile(1), row_begin = c.tile(2), row_end = c.tile(3);
  const int groups = (row_end - row_begin + PANEL - 1) / PANEL;
  Stream<S> stream(c, groups * (head_end - head_begin));
  for (int h = head_begin; h < head_end; ++h) {
    stage<S, false>(c, x + h * x_head, x_token, nullptr, 0.f);
    stream.multiply((h - head_begin) * groups, groups, h + 1 == head_end, [&](const float* sums, int t, int g, int in) {
      const int row = row_begin + g * PANEL + in;
      if (row < row_end) y[t * y_token + h * y_head + row] = sums[0];
    });
  }
}

}  // namespace tc
