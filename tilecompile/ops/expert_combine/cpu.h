// expert_combine: y[t][n] = epilogue(sum_slot slot_weight[t][slot] * (sum_k w[expert[slot]][n][k] * x[t][slot][k])).
//
// One tile of rows; the experts' tiles are streamed in slot order, each summed as linear does, and added to sums in
// scratch memory: ((0 + w0 * d0) + w1 * d1) + ... A slot that no token uses is not read, and a token that doesn't use a
// slot skips it, so its bits don't depend on the experts of other tokens. While a tile ends, the prefetches already
// fetch the start of the next expert's.
#pragma once

template <class W, class Epilogue>
inline void expert_combine_rows(const Call& c, int count, Columns columns, int slots, const float* x, int x_token,
                                int x_slot, const int32_t* expert, const float* weight, int weight_token,
                                Epilogue&& epilogue) {
  const int row_begin = c.tile(0), row_end = c.tile(1), panels = (row_end - row_begin + PANEL - 1) / PANEL;
  c.scratch->norm_x = nullptr;
  float* sums = reinterpret_cast<float*>(c.scratch->base);  // [panels][count][16]
  for (int i = 0; i < panels * count; ++i) store(sums + i * PANEL, zero());

  const auto tokens_of = [&](int slot) {
    return slot_tokens(expert[slot] < 0 ? 0 : count, x + slot * x_slot, x_token, weight + slot, weight_token);
  };
  Tokens tokens, following;
  const auto used_after = [&](int slot) {
    do ++slot;
    while (slot < slots && (following = tokens_of(slot)).count == 0);
    return slot;
  };

  for (int slot = used_after(-1), next_slot; slot < slots; slot = next_slot) {
    tokens = following;
    next_slot = used_after(slot);
    const W* w = c.weights<W>(slot, expert[slot]);
    const W* after = next_slot < slots ? c.weights<W>(next_slot, expert[next_slot]) : w;
    const auto add = [&](const v16* dot, int t, int row, int n) {
      float* to = sums + ((row - row_begin) / PANEL * count + t) * PANEL;
      store(to, fma(splat(weight[t * weight_token + slot]), dot[0], load(to)));
    };
    linear_rows<1>(w, tokens, columns, row_begin, row_end, add, after);
  }

  for (int p = 0; p < panels; ++p) {
    const int row = row_begin + p * PANEL;
    for (int t = 0; t < count; ++t) {
      const v16 a = load(sums + (p * count + t) * PANEL);
      epilogue(&a, t, row, row_end - row < PANEL ? row_end - row : PANEL);
    }
  }
}
