// Recording for the profiling build (-DTC_PROFILE=N): when every instruction of the last N steps began and ended.
//
// One clock reading an instruction: it begins when the one before it ended, unless its worker came back to it after a
// wait; then the clock is read once more. Which event a wait ended with follows from the ends of those that notify it.
#pragma once

#ifdef TC_PROFILE
#define TC_PROFILED(...) __VA_ARGS__

inline uint64_t ticks() {
#if defined(__x86_64__) && !defined(TC_STEADY)
  return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
  uint64_t count;
  asm volatile("mrs %0, cntvct_el0" : "=r"(count));
  return count;
#else
  return uint64_t(std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1));
#endif
}

// A row for each step: its number, when it was published, begin and end of every instruction.
struct Profile {
  size_t width = 0;
  std::vector<uint64_t> rows;

  void reserve(const Stream* streams, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) width = std::max(width, 2 + 2 * size_t(streams[i].end));
    rows.assign(TC_PROFILE * width, 0);
  }
  uint64_t* row(uint32_t step) { return rows.data() + step % TC_PROFILE * width; }
  void publish(uint32_t step) {
    row(step)[0] = step;
    row(step)[1] = ticks();
  }
};
#else
#define TC_PROFILED(...)  // nothing in an engine
#endif
