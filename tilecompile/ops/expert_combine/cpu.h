// expert_combine: y[t][n] = epilogue(sum_slot slot_weight[t][slot] * (sum_k w[expert[slot]][n][k] * x[t][slot][k])).
//
// One tile of rows; the experts' tiles are streamed in slot order, each summed as linear does, and added to sums in
// scratch memory: ((0 + w0 * d0) + w1 * d1) + ... A slot that no token uses is not read, and a token that doesn't use a
// slot skips it, so its bits don't depend on the experts of other tokens. While a tile ends, the prefetches already
// fetch the start of the next expert's.
#pragma once

// Adds one panel of one slot to the sums [N][16] of N tokens.
template <int N, int K, class W>
inline void combine_panel(const W* w, const W* next, const float* x, int x_stride, const float* weight,
                          int weight_stride, float* sum) {
  v16 dot[N];
  panel_dot<N>(w, x, x_stride, K, dot, next);
  for (int t = 0; t < N; ++t) {
    const float scale = weight[t * weight_stride];
    if (scale != 0.f) store(sum + t * PANEL, fma(splat(scale), dot[t], load(sum + t * PANEL)));
  }
}

template <int T, int K, int SLOTS, class W, class Epilogue>
inline void expert_combine_rows(const Call& c, const float* x, int x_token, int x_slot, const int32_t* expert,
                                const float* weight, int weight_token, Epilogue&& epilogue) {
  const int row_begin = c.tile(0), row_end = c.tile(1), panels = (row_end - row_begin + PANEL - 1) / PANEL;
  c.scratch->norm_x = nullptr;
  float* sums = reinterpret_cast<float*>(c.scratch->base);  // [panels][T][16]
  for (int i = 0; i < panels * T; ++i) store(sums + i * PANEL, zero());

  // The tokens that use a slot: how many, and the first of them.
  struct Users {
    int count = 0, first = 0;
  };
  const auto users_of = [&](int slot) {
    Users users;
    for (int t = T - 1; t >= 0 && expert[slot] >= 0; --t)
      if (weight[t * weight_token + slot] != 0.f) users = {users.count + 1, t};
    return users;
  };
  const auto used_after = [&](int slot) {
    do ++slot;
    while (slot < SLOTS && users_of(slot).count == 0);
    return slot;
  };

  for (int slot = used_after(-1), following; slot < SLOTS; slot = following) {
    following = used_after(slot);
    const W* w = c.weights<W>(slot, expert[slot]);
    const W* after = following < SLOTS ? c.weights<W>(following, expert[following]) : w;
    const float* x0 = x + slot * x_slot;
    const float* weight0 = weight + slot;
    const Users users = users_of(slot);
    for (int p = 0; p < panels; ++p, w += size_t(K) * PANEL) {
      const W* next = p + 1 < panels ? nullptr : after;
      float* sum = sums + p * T * PANEL;
      if (users.count == 1) {  // with several tokens most experts serve one
        const int t = users.first;
        combine_panel<1, K>(w, next, x0 + t * x_token, x_token, weight0 + t * weight_token, weight_token,
                            sum + t * PANEL);
      } else {
        combine_panel<T, K>(w, next, x0, x_token, weight0, weight_token, sum);
      }
    }
  }

  for (int p = 0; p < panels; ++p) {
    const int row = row_begin + p * PANEL;
    for (int t = 0; t < T; ++t) {
      const v16 a = load(sums + (p * T + t) * PANEL);
      epilogue(&a, t, row, row_end - row < PANEL ? row_end - row : PANEL);
    }
  }
}
