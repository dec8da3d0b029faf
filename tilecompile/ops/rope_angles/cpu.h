// rope_angles: y[t] = (cos a, sin a) for the f32 angle a = (position + t) * inv_freq.
//
// Angles reach 1e6, where an f32 is good to 0.06 only, so the functions are taken in double precision: they are those
// of the rounded angle, to f32 accuracy.
#pragma once

inline void rope_angles(int tokens, int N, int position, const float* inv_freq, float* y, int y_token, int y_row) {
  for (int t = 0; t < tokens; ++t) {
    const float at = float(position + t);
    for (int i = 0; i < N; ++i) {
      const float angle = at * inv_freq[i];
      y[t * y_token + i] = float(std::cos(double(angle)));
      y[t * y_token + y_row + i] = float(std::sin(double(angle)));
    }
  }
}
