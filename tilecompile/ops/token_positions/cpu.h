// token_positions: y[t] = position + t for the n tokens of the step.
#pragma once

inline void token_positions(int n, int position, int32_t* y, int y_token) {
  for (int t = 0; t < n; ++t) y[t * y_token] = position + t;
}
