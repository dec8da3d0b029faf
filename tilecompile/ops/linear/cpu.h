// linear: y[t][n] = epilogue(sum_k w[n][k] * x[t][k]), one tile of rows for all tokens.
//
// A tile is a stream of panels [K][16 rows], in bf16 [K / 2][16 rows][2]; with two weights their panels alternate. Each
// lane is one row: the activation is broadcast, so neither K nor the reduction needs padding. Every row is summed in the
// same order, whatever the tile, the number of tokens or the instruction set: four partial sums over k mod 4, then
// (0+1)+(2+3).
#pragma once

// One panel times T tokens whose activations are `stride` floats apart. `next` is what will be read after the panel, into
// which the prefetches run on; without it, what is stored after the panel.
template <int T, class W>
inline void panel_dot(const W* w, const float* x, int stride, int K, v16 (&out)[T], const W* next = nullptr) {
  const int64_t bytes = int64_t(K) * PANEL * sizeof(W);
  const char* here = reinterpret_cast<const char*>(w) + PREFETCH_BYTES;
  const char* there = next ? reinterpret_cast<const char*>(next) + PREFETCH_BYTES - bytes : here;
  v16 s[T][4];
  repeat<4 * T>([&](int i) INLINED { s[i / 4][i % 4] = zero(); });
  const auto add_pair = [&](int k, int q) INLINED {
    v16 even, odd;
    load_pair(w + k * PANEL, even, odd);
    repeat<T>([&](int t) INLINED {
      s[t][q] = fma(even, splat(x[t * stride + k]), s[t][q]);
      s[t][q + 1] = fma(odd, splat(x[t * stride + k + 1]), s[t][q + 1]);
    });
  };
  int k = 0;
  for (; k + 4 <= K; k += 4) {
    const int64_t done = int64_t(k) * PANEL * sizeof(W);
    const char* ahead = (done + PREFETCH_BYTES < bytes ? here : there) + done;
    for (int b = 0; b < int(4 * PANEL * sizeof(W)); b += 64) prefetch(ahead + b);
    repeat<2>([&](int pair) INLINED { add_pair(k + 2 * pair, 2 * pair); });
  }
  if (K % 4 >= 2) add_pair(k, 0);
  if (K % 2 != 0) {
    const v16 wv = load(w + (K - 1) * PANEL);
    const int q = (K - 1) % 4;
    for (int t = 0; t < T; ++t) s[t][q] = fma(wv, splat(x[t * stride + K - 1]), s[t][q]);
  }
  for (int t = 0; t < T; ++t) out[t] = (s[t][0] + s[t][1]) + (s[t][2] + s[t][3]);
}

// Rows row_begin..row_end of N weights; `epilogue(acc, t, row, n)` gets the N results of 16 rows and stores them.
// `after` is what will be read after the tile; without it, what is stored after the tile.
template <int T, int K, int N, class W, class Epilogue>
inline void linear_rows(const W* w, const float* x, int stride, int row_begin, int row_end, Epilogue&& epilogue,
                        const W* after = nullptr) {
  for (int row = row_begin; row < row_end; row += PANEL) {
    const W* next = row + PANEL < row_end ? nullptr : after;
    v16 acc[N][T];
    for (int i = 0; i < N; ++i, w += size_t(K) * PANEL) panel_dot<T>(w, x, stride, K, acc[i], i == N - 1 ? next : nullptr);
    for (int t = 0; t < T; ++t) {
      v16 a[N];
      for (int i = 0; i < N; ++i) a[i] = acc[i][t];
      epilogue(a, t, row, row_end - row < PANEL ? row_end - row : PANEL);
    }
  }
}
