// How fast this machine's threads read memory: the bandwidth that a step is compared with. Not part of any step.
#pragma once

// Sums the 32-bit words of n bytes, a multiple of 8 vectors, as `Streams` streams side by side. With Locality >= 0
// the cache lines `ahead` bytes on are prefetched, as `__builtin_prefetch` has it: 3 into all caches, 2 into all but the
// first, 0 past them.
template <int Streams, int Locality>
static uint32_t read_words(const char* base, size_t n, size_t ahead) {
  constexpr int VECTORS = 8 / Streams, BYTES = VECTORS * int(sizeof(vu));  // of one stream in a turn
  const size_t part = n / Streams;
  vu sums[8] = {};
  for (size_t i = 0; i < part; i += BYTES)
    repeat<Streams>([&](int s) INLINED {
      const char* p = base + s * part + i;
      if constexpr (Locality >= 0)
        for (int b = 0; b < BYTES; b += 64) __builtin_prefetch(p + ahead + b, 0, Locality);
      repeat<VECTORS>([&](int v) INLINED {
        vu x;
        memcpy(&x, p + v * sizeof x, sizeof x);
        sums[s * VECTORS + v] += x;
      });
    });
  uint32_t sum = 0;
  for (const vu& s : sums)
    for (int l = 0; l < LANES; ++l) sum += s[l];
  return sum;
}

using Read = uint32_t (*)(const char*, size_t, size_t);
template <int Streams>
static Read read_kernel(int32_t locality) {
  return locality < 0    ? read_words<Streams, -1>
         : locality == 0 ? read_words<Streams, 0>
         : locality < 3  ? read_words<Streams, 2>
                         : read_words<Streams, 3>;
}

extern "C" {

// Reads `bytes` (a multiple of threads * 2048) `passes` times with several threads, each its own part, as `streams`
// streams (1, 2 or 4), and with prefetches `ahead` unless `locality` is -1. Returns the seconds from the common start to
// the end of the last thread, and in `sum` the sum of all 32-bit words over all passes; -1 where the system gives no more
// threads.
double tc_read(const char* base, uint64_t bytes, uint32_t threads, uint32_t streams, int32_t locality, uint64_t ahead,
               uint32_t passes, uint32_t* sum) {
  using Clock = std::chrono::steady_clock;
  const Read kernel = streams == 4   ? read_kernel<4>(locality)
                      : streams == 2 ? read_kernel<2>(locality)
                                     : read_kernel<1>(locality);
  const size_t part = bytes / threads;
  std::atomic<uint32_t> there{0}, total{0};
  std::atomic<bool> off{false};
  std::vector<Clock::time_point> ends(threads);
  Clock::time_point begin;
  const auto run = [&](uint32_t t) {
    uint32_t mine = 0;
    if (there.fetch_add(1) + 1 == threads) {
      begin = Clock::now();
      off = true;
    }
    while (!off) relax();
    for (uint32_t i = 0; i < passes; ++i) {
      mine += kernel(base + t * part, part, size_t(ahead));
      asm volatile("" ::: "memory");  // every pass reads
    }
    ends[t] = Clock::now();
    total += mine;
  };
  std::vector<std::thread> others;
  try {
    for (uint32_t t = 0; t < threads; ++t) others.emplace_back(run, t);
  } catch (const std::exception&) {
    off = true;
  }
  for (std::thread& t : others) t.join();
  if (others.size() < threads) return -1;
  *sum = total;
  return std::chrono::duration<double>(*std::max_element(ends.begin(), ends.end()) - begin).count();
}

}  // extern "C"
