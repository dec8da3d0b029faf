// expert_linear: y[t][slot][n] = epilogue(sum_k w[expert[slot]][n][k] * x[t][k]) for one slot and one tile of rows.
//
// The tile is the expert's own, streamed and summed as linear does; an inactive slot reads and writes nothing. What is
// stored after the tile belongs to another expert, so the prefetches don't run past its end: they go back to its start.
#pragma once

template <int T, int K, int N, class W, class Epilogue>
inline void expert_linear_rows(const Call& c, int expert, const float* x, int stride, Epilogue&& epilogue) {
  const W* w = c.weights<W>(0, expert);
  linear_rows<T, K, N>(w, x, stride, c.tile(0), c.tile(1), epilogue, w);
}
