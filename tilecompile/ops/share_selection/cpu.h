// share_selection: the entries of state[t] = [position, selection] and the positions after it, up to position + t.
//
// Positions that follow each other are rows that follow each other, in a shard of the context too.
#pragma once

template <class Shard>
inline void share_selection(int n, Shard shard, const int32_t* state, int state_stride, int position, int32_t* out,
                            int width, int out_stride, int32_t* last, int last_stride) {
  for (int t = 0; t < n; ++t, state += state_stride, out += out_stride, last += last_stride) {
    int taken = 0;
    for (; taken < width && state[1 + taken] >= 0; ++taken) out[taken] = state[1 + taken];
    const int end = shard.rows(position + t + 1);
    for (int row = shard.rows(state[0] + 1); row < end && taken < width; ++row) out[taken++] = row;
    *last = taken - 1;
    for (; taken < width; ++taken) out[taken] = -1;
  }
}
