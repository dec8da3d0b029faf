// Recording for the profiling build (-DTC_PROFILE=N): when every instruction of N steps began and ended.
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

// `marks`: when each of the last steps was published; `steps`: its program, and how many tokens it has. `rows`: for every `every`-th step its number, when it was
// published, begin and end of every instruction. They are few, so that they don't push weights out of the caches; one
// more is for the steps that are not kept.
struct alignas(64) Profile {
  static constexpr size_t MARKS = 1024;
  size_t width = 0;
  uint32_t every = 1;
  std::vector<uint64_t> marks, rows;
  std::vector<uint32_t> steps;

  void reserve(const Stream* streams, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) width = std::max(width, 2 + 2 * size_t(streams[i].end));
    marks.assign(MARKS, 0);
    steps.assign(2 * MARKS, 0);
    rows.assign((TC_PROFILE + 1) * width, 0);
  }
  uint64_t* row(uint32_t step) { return rows.data() + (step % every ? TC_PROFILE : step / every % TC_PROFILE) * width; }
  void publish(uint32_t step, const Step& what) {
    steps[step % MARKS * 2] = what.program;
    steps[step % MARKS * 2 + 1] = what.tokens;
    row(step)[0] = step;
    row(step)[1] = marks[step % MARKS] = ticks();
  }
};
#else
#define TC_PROFILED(...)  // nothing in an engine
#endif
