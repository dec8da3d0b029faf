// expert_linear: y[t][slot][n] = epilogue(sum_k w[expert[slot]][n][k] * x[t][k]) for one slot and one tile of rows, and
// the tokens that use the slot.
//
// The tile is the expert's own, streamed and summed as linear does; an inactive slot reads and writes nothing. What is
// stored after the tile belongs to another expert, so the prefetches don't run past its end: they go back to its start.
#pragma once

// The tokens, of the first n, that use a slot: those whose weight for it isn't 0.
inline Tokens slot_tokens(int n, const float* x, int stride, const float* slot_weight, int weight_stride) {
  Tokens tokens;
  for (int t = 0; t < n; ++t)
    if (slot_weight[t * weight_stride] != 0.f) tokens.add(x + size_t(t) * stride, t);
  return tokens;
}

template <int N, class W, class Epilogue>
inline void expert_linear_rows(const Call& c, int expert, const Tokens& tokens, Columns columns, Epilogue&& epilogue) {
  const W* w = c.weights<W>(0, expert);
  linear_rows<N>(w, tokens, columns, c.tile(0), c.tile(1), epilogue, w);
}
