// last_token: y = x[n - 1], columns lo to hi, of the n tokens of the step.
#pragma once

#include <cstring>

inline void last_token(int n, const uint32_t* x, int x_stride, uint32_t* y, int lo, int hi) {
  memcpy(y + lo, x + size_t(n - 1) * x_stride + lo, size_t(hi - lo) * sizeof *x);
}
