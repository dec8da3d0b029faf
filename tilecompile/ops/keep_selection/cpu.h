// keep_selection: state[t] = [position + t, selection[t], -1 ...] for the n tokens of the step.
#pragma once

inline void keep_selection(int n, int32_t* state, int width, int state_stride, const int32_t* selection, int entries,
                           int selection_stride, int position) {
  for (int t = 0; t < n; ++t, state += state_stride, selection += selection_stride) {
    state[0] = position + t;
    for (int i = 1; i < width; ++i) state[i] = i <= entries ? selection[i - 1] : -1;
  }
}
