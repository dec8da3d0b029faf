// Runs the text of hand-written GPU bodies on a host: the 256 threads of a body as fibers of one thread, in step wherever
// they meet. In the place of ops/kit/cuda/sync.cuh and ops/kit/cuda/ring.cuh; what it computes, it computes as the PTX ISA states it.
//
// A run of weights comes through a ring of three slots, which are full of NaN before they are filled and once
// all warps have released them.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#define TC_DEVICE inline
#define TC_UNROLL
#define TC_ROLLED

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

inline float __uint_as_float(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
inline uint32_t __float_as_uint(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}

namespace tc {

// --- fibers ----------------------------------------------------------------------------------------------------------

[[noreturn]] inline void fail(const std::string& what) {
  fprintf(stderr, "%s\n", what.c_str());
  abort();
}

struct Fibers {
  static constexpr size_t STACK = 64 << 10;
  ucontext_t start[CONSUMERS];
  jmp_buf main, fiber[CONSUMERS];  // later changes don't ask the system
  std::vector<char> stacks = std::vector<char>(STACK * CONSUMERS);
  bool begun[CONSUMERS], done[CONSUMERS];
  int current = 0;
  uint32_t runs = 0;
  uint64_t moves = 0;  // what has happened: if a round of all fibers moves nothing, they wait for each other
  void (*body)(void*);
  void* argument;
};
inline Fibers fibers;

inline int thread() { return fibers.current; }
inline int lane() { return thread() % LANES; }
inline int fresh_thread() { return thread(); }

inline void yield() {
  if (!_setjmp(fibers.fiber[fibers.current])) _longjmp(fibers.main, 1);
}

inline void start() {
  fibers.body(fibers.argument);
  fibers.done[fibers.current] = true;
  ++fibers.moves;
  _longjmp(fibers.main, 1);
}

// Runs a fiber until it yields or ends.
inline void go_on(int which) {
  fibers.current = which;
  if (_setjmp(fibers.main)) return;
  if (fibers.begun[which]) _longjmp(fibers.fiber[which], 1);
  fibers.begun[which] = true;
  setcontext(&fibers.start[which]);
}

// A place where `count` threads meet.
struct Meeting {
  int count, here = 0;
  uint64_t times = 0;
  void meet() {
    const uint64_t mine = times;
    ++fibers.moves;
    if (++here == count) {
      here = 0;
      ++times;
    }
    while (times == mine) yield();
  }
};

inline Meeting all;
inline std::vector<Meeting> warps;

// Runs `body` on all threads, in an order of threads that `seed` chooses anew in every round; it lets warps wait, too.
inline void run_threads(void (*body)(void*), void* argument, uint32_t seed) {
  ++fibers.runs;  // one before may have ended in the middle
  all = {CONSUMERS};
  warps.assign(CONSUMER_WARPS, {LANES});
  fibers.body = body;
  fibers.argument = argument;
  for (int i = 0; i < CONSUMERS; ++i) {
    fibers.begun[i] = fibers.done[i] = false;
    getcontext(&fibers.start[i]);
    fibers.start[i].uc_stack.ss_sp = fibers.stacks.data() + i * Fibers::STACK;
    fibers.start[i].uc_stack.ss_size = Fibers::STACK;
    fibers.start[i].uc_link = nullptr;
    makecontext(&fibers.start[i], start, 0);
  }
  uint64_t before = 0;
  uint32_t late = 0, idle = 0;  // warps that get no turn for a while
  for (int left = CONSUMERS; left > 0;) {
    left = 0;
    seed = seed * 1664525 + 1013904223;
    if (idle > 20)
      late = 0;
    else if (seed >> 28 == 0)
      late = seed >> 16 & seed >> 8 & 255;
    for (uint32_t i = 0; i < CONSUMERS; ++i) {
      const int next = (i * 37 + (seed >> 16)) % CONSUMERS;
      if (fibers.done[next]) continue;
      ++left;
      if (late >> next / LANES & 1) continue;
      go_on(next);
    }
    idle = fibers.moves == before ? idle + 1 : 0;
    before = fibers.moves;
    if (idle > 25) fail("threads wait for each other: not all of them meet");
  }
}

inline void add_block(uint64_t* p, uint64_t v) { *p += v; }
inline uint32_t add_block(uint32_t* p, uint32_t v) {
  *p += v;
  return *p - v;
}

constexpr int BODY_BARRIER = 3;
template <int ID, int COUNT>
inline void barrier() {
  static_assert(ID == BODY_BARRIER && COUNT == CONSUMERS);
  all.meet();
}
inline void warp_barrier() { warps[thread() / LANES].meet(); }

// What each lane of a warp gives, as all see it.
template <class T>
struct Exchange {
  T value[2][CONSUMERS];
  uint32_t run = 0;
  int turn[CONSUMERS];
  const T* operator()(const T& mine) {
    if (run != fibers.runs) std::fill_n(turn, CONSUMERS, 0);
    run = fibers.runs;
    T* const values = value[turn[thread()]++ % 2];
    values[thread()] = mine;
    warp_barrier();
    return values + thread() / LANES * LANES;
  }
};

inline float shuffle_xor(float v, int mask) {
  static Exchange<float> exchange;
  return exchange(v)[lane() ^ mask];
}

// --- numbers ---------------------------------------------------------------------------------------------------------

inline float of_bf16(uint32_t u) { return __uint_as_float(u << 16); }
inline float of_f16(uint32_t u) {
  _Float16 h;
  const uint16_t bits = uint16_t(u);
  memcpy(&h, &bits, 2);
  return float(h);
}
inline uint32_t bf16_of(float x) {
  const uint32_t u = __float_as_uint(x);
  if (x != x) return u >> 16 | 0x40;
  return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
inline uint32_t f16_of(float x) {
  const _Float16 h = _Float16(x);
  uint16_t bits;
  memcpy(&bits, &h, 2);
  return bits;
}
// e4m3 has no infinity; S.1111.111 is not a number.
inline float of_e4m3(uint32_t u) {
  const int e = u >> 3 & 15, m = u & 7;
  const float v = e == 15 && m == 7 ? NAN : e ? std::ldexp(1.f + m / 8.f, e - 7) : std::ldexp(m / 8.f, -6);
  return u & 128 ? -v : v;
}
inline uint32_t f16_of_e4m3(uint16_t two) { return f16_of(of_e4m3(two & 255)) | f16_of(of_e4m3(two >> 8)) << 16; }
inline float f32_of_f16(uint16_t h) { return of_f16(h); }
inline uint32_t pack_bf16(float low, float high) { return bf16_of(low) | bf16_of(high) << 16; }
inline uint32_t pack_f16(float low, float high) { return f16_of(low) | f16_of(high) << 16; }

// mma.m16n8k16: rows of a and columns of b by lane and number within the lane, as the PTX ISA states them. Products of two
// 16-bit numbers are exact in f32; the sum of 16 and d is rounded once.
struct Operands {
  uint32_t a[4], b[2];
};
template <float (*value)(uint32_t)>
inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static Exchange<Operands> exchange;
  const Operands* all = exchange({{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
  const auto half = [](uint32_t word, int i) { return value(word >> 16 * i & 0xffff); };
  const auto element_a = [&](int row, int col) {  // a_i of lane l: see tests/targets/cuda/test_fragments.py
    const int i = (row >= 8) * 2 + (col >= 8) * 4 + col % 2;
    return half(all[row % 8 * 4 + col % 8 / 2].a[i / 2], i % 2);
  };
  const auto element_b = [&](int row, int col) {  // b_i of lane l: row (l % 4) * 2 + (i & 1) + 8 for i >= 2, column l / 4
    return half(all[col * 4 + row % 8 / 2].b[row >= 8], row % 2);
  };
  for (int i = 0; i < 4; ++i) {  // d_i of lane l: row l / 4 + 8 for i >= 2, column (l % 4) * 2 + (i & 1)
    double sum = d[i];
    for (int k = 0; k < 16; ++k)
      sum += double(element_a(lane() / 4 + i / 2 * 8, k)) * element_b(k, lane() % 4 * 2 + i % 2);
    d[i] = float(sum);
  }
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma<of_bf16>(d, a, b); }
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma<of_f16>(d, a, b); }

// --- the ring --------------------------------------------------------------------------------------------------------

struct Slots {
  static constexpr int HELD = 3;
  std::vector<std::vector<char>> given;  // slot by slot, what the loader copies
  alignas(16) char memory[HELD][SLOT];
  uint32_t filled = 0, released = 0, leaving[HELD] = {};

  void poison(int stage) { memset(memory[stage], 0xff, SLOT); }
  const char* wait(uint32_t n) {
    if (n >= given.size()) fail("a body waits for more slots than its weights have");
    while (filled <= n) {  // any fiber may fill a slot meanwhile
      if (filled >= released + HELD) {
        yield();
        continue;
      }
      memcpy(memory[filled % HELD], given[filled].data(), given[filled].size());
      ++filled;
      ++fibers.moves;
    }
    return memory[n % HELD];
  }
  void release(uint32_t n) {
    ++fibers.moves;
    if (++leaving[n % HELD] < CONSUMER_WARPS) return;
    leaving[n % HELD] = 0;
    poison(n % HELD);
    ++released;
  }
};
inline Slots slots;

struct Ring {
  uint32_t n = 0;
  const char* wait() { return slots.wait(n); }
  void release() {
    warp_barrier();
    if (lane() == 0) slots.release(n);
    ++n;
  }
};

}  // namespace tc
