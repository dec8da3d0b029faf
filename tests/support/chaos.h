// Included before a kernel's source: at every point of the loop that TC_CHAOS marks a thread may yield its core, spin
// or sleep, at random. A delay seldom lasts longer than a step, and every thread draws its own from CHAOS_SEED.
#pragma once
#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

inline uint64_t chaos_random() {
  static std::atomic<uint64_t> threads{0};
  static thread_local uint64_t x = (CHAOS_SEED + 1) * 0x9E3779B97F4A7C15u + ++threads * 0xBF58476D1CE4E5B9u;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return x >> 16;
}

inline void chaos() {
  const uint64_t r = chaos_random(), amount = r >> 16;
  switch (r % 64) {
    case 0:
      std::this_thread::sleep_for(std::chrono::microseconds(amount % 100));
      break;
    case 1: case 2: case 3: case 4: case 5: case 6: case 7:
      sched_yield();
      break;
    case 8: case 9: case 10: case 11: case 12: case 13: case 14: case 15:
      for (volatile uint64_t i = amount % 4096; i; i = i - 1) {}
      break;
  }
}

extern "C" inline __attribute__((used)) uint64_t chaos_seed() { return CHAOS_SEED; }

#define TC_CHAOS(where) chaos();
