// rope: pairs (2i, 2i+1) of the first R of D rotated by angle i, the rest copied; heads begin..end of all tokens.
//
// (a, b) becomes (a cos - b sin, b cos + a sin): x * (cos, cos) + swapped x * (-sin, sin), so each token's cosines and
// sines are spread out to pairs once, for all of its heads.
#pragma once

template <int D, int R>
inline void rope(int tokens, const float* x, int x_token, int x_head, const float* angles, int angles_token, int angles_row,
                 float* y, int y_token, int y_head, int begin, int end) {
  static_assert(R % 2 == 0 && R <= D);
  constexpr int PADDED = (R + 15) / 16 * 16;
  for (int t = 0; t < tokens; ++t) {
    alignas(64) float cosine[PADDED] = {}, sine[PADDED] = {};
    for (int i = 0; i < R / 2; ++i) {
      const float a = angles[t * angles_token + i], b = angles[t * angles_token + angles_row + i];
      cosine[2 * i] = cosine[2 * i + 1] = a;
      sine[2 * i] = -b;
      sine[2 * i + 1] = b;
    }
    for (int h = begin; h < end; ++h) {
      const float* in = x + t * x_token + h * x_head;
      float* out = y + t * y_token + h * y_head;
      each_block(0, R, [&](int i, int n) {
        const v16 v = load_n(in + i, n);
        store_n(out + i, v * load(cosine + i) + rounded(swap_pairs(v) * load(sine + i)), n);
      });
      each_block(R, D, [&](int i, int n) { store_n(out + i, load_n(in + i, n), n); });
    }
  }
}
