// The functions of tilecompile/ops/kit/cuda/sync.cuh for running a kernel of resident blocks on a host: a launch is a
// thread of the process, its warps are fibers of that thread, which are switched at every poll of what others may have
// to do first. A warp has one lane.
#pragma once
#include <sched.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#define TC_DEVICE inline
#define TC_UNROLL
#define TC_ROLLED

namespace host {

[[noreturn]] inline void fail(const char* what) {
  fprintf(stderr, "host kernel: %s\n", what);
  abort();
}

struct Fiber {
  jmp_buf jump;
  ucontext_t start;
  uint32_t block;
  int warp;
  bool begun = false, done = false;
};

struct Barrier {
  int arrived = 0;
  uint32_t times = 0;
};

// As it is stored in the 64 bits of an mbarrier.
struct Mbarrier {
  uint8_t arrivals, pending, phase, unused;
  int32_t bytes;
  void settle() {
    if (pending || bytes) return;
    phase ^= 1;
    pending = arrivals;
  }
};
static_assert(sizeof(Mbarrier) == 8);

constexpr size_t STACK = 16 << 20;  // of addresses; pages come when they are touched

struct Blocks {
  std::vector<Fiber> fibers;
  std::vector<char*> shared;      // by block
  std::vector<Barrier> barriers;  // 16 a block
  const int* kill;
  void (*body)(void*);
  void* argument;
  size_t me = 0;
  uint64_t moves = 0, before = 0;  // what has happened
  uint32_t idle = 0;               // rounds of all fibers in which nothing has
  ucontext_t outside;
  char* stacks;

  Fiber& self() { return fibers[me]; }

  static void enter();

  Blocks(uint32_t grid, int warps, size_t shared_bytes) : fibers(size_t(grid) * warps), barriers(grid * 16) {
    stacks = static_cast<char*>(mmap(nullptr, STACK * fibers.size(), PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (stacks == MAP_FAILED) fail("no memory for stacks");
    for (size_t i = 0; i < fibers.size(); ++i) {
      Fiber& f = fibers[i];
      f.block = uint32_t(i / warps);
      f.warp = int(i % warps);
      getcontext(&f.start);
      f.start.uc_stack.ss_sp = stacks + i * STACK;
      f.start.uc_stack.ss_size = STACK;
      f.start.uc_link = nullptr;
      makecontext(&f.start, enter, 0);
    }
    for (uint32_t b = 0; b < grid; ++b) {
      shared.push_back(static_cast<char*>(aligned_alloc(1024, (shared_bytes + 1023) / 1024 * 1024)));
      memset(shared.back(), 0xA5, shared_bytes);
    }
  }
  ~Blocks() {
    for (char* p : shared) free(p);
    munmap(stacks, STACK * fibers.size());
  }

  // Lets another fiber go on; after a round in which nothing happened, other threads too.
  void change() {
    if (__atomic_load_n(kill, __ATOMIC_RELAXED)) setcontext(&outside);
    size_t next = me;
    do {
      if (++next == fibers.size()) {
        next = 0;
        idle = moves == before ? idle + 1 : 0;
        before = moves;
        if (idle > 400)
          usleep(50);
        else if (idle > 4)
          sched_yield();
      }
    } while (fibers[next].done && next != me);
    if (next == me) {
      if (self().done) setcontext(&outside);
      return;
    }
    if (!self().done && _setjmp(self().jump)) return;
    me = next;
    if (self().begun) _longjmp(self().jump, 1);
    self().begun = true;
    setcontext(&self().start);
  }

  void run() {
    volatile bool back = false;
    getcontext(&outside);
    if (back) return;
    back = true;
    self().begun = true;
    setcontext(&self().start);
  }
};
inline thread_local Blocks* blocks;

inline void Blocks::enter() {
  blocks->body(blocks->argument);
  blocks->self().done = true;
  ++blocks->moves;
  blocks->change();
  fail("a fiber goes on after its end");
}

}  // namespace host

namespace tc {

using host::blocks;

inline int thread() { return blocks->self().warp; }
inline int lane() { return 0; }
inline int fresh_thread() { return thread(); }
inline uint32_t block() { return blocks->self().block; }
inline char* shared_memory() { return blocks->shared[block()]; }

// Other threads, too, may write there, but not at the same time.
template <class T>
inline T load(const T* p) {
  return *p;
}
template <class T>
inline void store(T* p, T v) {
  *p = v;
  ++blocks->moves;
}

inline uint32_t poll(const uint32_t* p, bool) {
  blocks->change();
  return __atomic_load_n(p, __ATOMIC_RELAXED);
}
inline void fence(bool) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline uint32_t load_acquire_sys(const uint32_t* p) {
  blocks->change();
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
inline void store_relaxed_sys(uint32_t* p, uint32_t v) {
  __atomic_store_n(p, v, __ATOMIC_RELAXED);
  ++blocks->moves;
}
inline void store_release_sys(uint32_t* p, uint32_t v) {
  __atomic_store_n(p, v, __ATOMIC_RELEASE);
  ++blocks->moves;
}
inline void add_release(uint32_t* p, bool) {
  __atomic_fetch_add(p, 1u, __ATOMIC_RELEASE);
  ++blocks->moves;
}
inline uint32_t load_acquire_block(const uint32_t* p) {
  blocks->change();
  return *p;
}
inline void store_release_block(uint32_t* p, uint32_t v) { store(p, v); }
inline bool claim(uint32_t* p) { return std::exchange(*p, 1u) == 0; }

constexpr int BODY_BARRIER = 3;
constexpr int LOOP_BARRIER = 4;

template <int ID, int THREADS>
inline void barrier() {
  host::Barrier& b = blocks->barriers[block() * 16 + ID];
  const uint32_t mine = b.times;
  ++blocks->moves;
  if (++b.arrived == THREADS) {
    b.arrived = 0;
    ++b.times;
  }
  while (b.times == mine) blocks->change();
}
inline void warp_barrier() {}

inline host::Mbarrier& mbarrier(uint64_t* b) { return *reinterpret_cast<host::Mbarrier*>(b); }
inline void mbarrier_init(uint64_t* b, uint32_t arrivals) {
  mbarrier(b) = {uint8_t(arrivals), uint8_t(arrivals), 0, 0, 0};
}
inline void mbarrier_init_fence() {}
inline void mbarrier_expect(uint64_t* b, uint32_t bytes) {
  host::Mbarrier& m = mbarrier(b);
  if (!m.pending) host::fail("an arrival too many");
  --m.pending;
  m.bytes += int32_t(bytes);
  m.settle();
  ++blocks->moves;
}
inline void mbarrier_arrive(uint64_t* b) { mbarrier_expect(b, 0); }
inline bool mbarrier_try(uint64_t* b, uint32_t parity) {
  blocks->change();
  return mbarrier(b).phase != parity;
}
inline void bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* b) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16 || bytes % 16 || !bytes)
    host::fail("a bulk copy that isn't in units of 16 bytes");
  memcpy(to, from, bytes);
  mbarrier(b).bytes -= int32_t(bytes);
  mbarrier(b).settle();
  ++blocks->moves;
}
inline void prefetch(const void*, uint32_t) {}
inline void async_fence() {}

inline uint64_t nanoseconds() {
  return uint64_t(std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch()).count());
}
inline void nap(uint32_t) { blocks->change(); }

inline uint32_t bits_of(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}
inline uint32_t bf16_of(float x) { return (bits_of(x) + 0x7fff + (bits_of(x) >> 16 & 1)) >> 16; }
inline uint32_t pack_bf16(float low, float high) { return bf16_of(low) | bf16_of(high) << 16; }
// Of a finite number: the nearest e4m3, ties to even, 448 at most.
inline uint32_t e4m3_of(float x) {
  const float most = std::fmin(std::fabs(x), 448.f);
  const int e = std::max(std::ilogb(std::fmax(most, 1e-9f)), -6);
  const uint32_t steps = uint32_t(std::nearbyint(std::ldexp(most, 3 - e)));  // of 2^(e - 3): 8 to 16, or 0 to 8 where e is -6
  return (steps < 8 ? steps : uint32_t(e + 6) * 8 + steps) | (x < 0 ? 0x80 : 0);
}
inline uint16_t pack_e4m3(float low, float high) { return uint16_t(e4m3_of(low) | e4m3_of(high) << 8); }

}  // namespace tc

inline uint32_t __float_as_uint(float x) { return tc::bits_of(x); }
