// push: columns begin..end of all tokens to the peer's copy of the tensor.
#pragma once

inline void push(int tokens, const uint32_t* x, int x_token, uint32_t* y, int y_token, int begin, int end) {
  for (int t = 0; t < tokens; ++t)
    memcpy(y + size_t(t) * y_token + begin, x + size_t(t) * x_token + begin, size_t(end - begin) * sizeof(uint32_t));
}
