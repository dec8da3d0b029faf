// What the resident loop is made of: counters, workers, threads.
#pragma once
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__x86_64__)
inline void relax() { __builtin_ia32_pause(); }
#elif defined(__aarch64__)
inline void relax() { asm volatile("yield"); }
#else
inline void relax() {}
#endif

constexpr uint32_t SPIN = 64;             // polls without progress before a thread yields its core; more harms others
constexpr uint32_t PARK_POLLS = 1 << 12;  // polls between requests before a thread parks
constexpr size_t HINT_BYTES = 2048;      // of the next weight run, fetched while a worker waits

constexpr uint32_t OWN_COUNTERS = 4;     // most threads that each count an event's notifications by themselves

struct alignas(64) Counter {
  std::atomic<uint32_t> value{0};
};

// The events' counters. With few threads each has one of its own for every event and the counter's value is their sum:
// a notification is then a plain store, which doesn't wait until the line, and all that the body has stored, is the
// core's own. With many threads it would cost more to read them all.
class Counters {
 public:
  void resize(uint32_t events, uint32_t threads) {
    parts_ = threads <= OWN_COUNTERS ? threads : 1;
    shared_ = parts_ < threads;
    counters_ = std::vector<Counter>(size_t(events) * parts_);
  }
  uint32_t value(uint32_t event) const {
    uint32_t sum = 0;
    const Counter* c = counters_.data() + size_t(event) * parts_;
    for (uint32_t i = 0; i < parts_; ++i) sum += c[i].value.load(std::memory_order_relaxed);
    return sum;
  }
  void notify(uint32_t event, uint32_t thread) {
    if (shared_) {
      counters_[event].value.fetch_add(1, std::memory_order_release);
    } else {
      std::atomic<uint32_t>& own = counters_[size_t(event) * parts_ + thread].value;
      own.store(own.load(std::memory_order_relaxed) + 1, std::memory_order_release);
    }
  }

 private:
  std::vector<Counter> counters_;
  uint32_t parts_ = 1;
  bool shared_ = false;
};

// One worker: its place in the current step.
struct Worker {
  uint32_t id = 0;
  uint32_t sequence = 0;  // step that it is in, or has finished
  uint32_t pc = 0, end = 0;
  uint32_t wait = 0;  // waits of the current instruction that are already met
  bool hinted = false;
  const char* pool = nullptr;
  std::vector<const Stream*> streams;  // by program
};

struct alignas(64) ThreadState {
  uint32_t id = 0;
  std::atomic<uint64_t> beat{0};         // grows by one before and after every instruction: odd inside a body
  std::atomic<uint32_t> polls{0};        // rounds in which it polled all its workers and none could run
  std::atomic<uint32_t> waiting{NONE};   // operator of the first instruction that one of them waited for then
  std::thread thread;
  std::vector<Worker> workers;
  Scratch scratch{nullptr};
};

// What a waiting thread remembers of the time without progress.
struct Quiet {
  std::chrono::steady_clock::time_point last = std::chrono::steady_clock::now();
  uint64_t beats = 0;
  uint32_t ms = 0;
  std::vector<uint32_t> polls;  // of each thread when the quiet began; empty before the first poll
};
