// head_linear: y[t][h][n] = sum_k w[h][n][k] * x[t][h][k], one tile of heads and rows for all tokens.
//
// A tile is the panels of its heads one after the other, each head's rows padded to whole panels; every row is summed
// in linear's order.
#pragma once

template <class W>
inline void head_linear(const W* tile, int tokens, Columns columns, const float* x, int x_token, int x_head, float* y, int y_token,
                        int y_head, int head_begin, int head_end, int row_begin, int row_end) {
  Panels<W> of(tile, (head_end - head_begin) * ((row_end - row_begin + PANEL - 1) / PANEL), columns);
  for (int h = head_begin; h < head_end; ++h) {
    float* out = y + h * y_head;
    const Tokens all = Tokens::first(tokens, x + h * x_head, x_token);
    linear_rows<1>(of, all, row_begin, row_end, [&](const v16* a, int t, int row, int n) {
      store_n(out + t * y_token + row, a[0], n);
    });
  }
}
