// keep: state[t] = x[t], columns lo to hi, for the n tokens of the step.
#pragma once

#include <cstring>

inline void keep(int n, uint32_t* state, int state_stride, const uint32_t* x, int x_stride, int lo, int hi) {
  for (int t = 0; t < n; ++t)
    memcpy(state + size_t(t) * state_stride + lo, x + size_t(t) * x_stride + lo, size_t(hi - lo) * sizeof *x);
}
