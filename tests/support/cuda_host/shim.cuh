// The functions of tilecompile/ops/kit/cuda/sync.cuh on a host, over the simulation of simulation.h.
#pragma once

#define TC_DEVICE inline
#define TC_UNROLL
#define TC_ROLLED

namespace tc {

using host::sim;

inline int thread() { return sim().self().warp; }
inline int lane() { return 0; }
inline int fresh_thread() { return thread(); }
inline uint32_t block() { return sim().self().number; }
inline char* shared_memory() { return sim().shared[sim().self().block]; }

template <class T>
inline T load(const T* p) {
  sim().point();
  for (size_t i = 0; i < sizeof(T); i += 4)
    sim().read(reinterpret_cast<const char*>(p) + i, sim().self().clock, sim().id());
  return *p;
}
template <class T>
inline void store(T* p, T v) {
  sim().point();
  for (size_t i = 0; i < sizeof(T); i += 4)
    sim().write(reinterpret_cast<const char*>(p) + i, sim().self().clock, sim().id());
  *p = v;
}

inline uint32_t poll(const uint32_t* p, bool sys) {
  sim().change();
  sim().settle_stores(p);
  sim().poll(p);
  sim().seen(p, sys);
  return *p;
}
inline void fence(bool sys) {
  sim().point();
  sim().settle_stores();
  host::Fiber& f = sim().self();
  f.clock.join(sys ? f.seen_sys : f.seen_gpu);
  f.fence_gpu = f.clock;
  if (sys) f.fence_sys = f.clock;
  sim().tick();
}
inline uint32_t load_acquire_sys(const uint32_t* p) {
  const uint32_t v = poll(p, true);
  const auto found = sim().released.find(p);
  if (found == sim().released.end()) return v;
  host::Fiber& f = sim().self();
  f.clock.join(found->second.gpu[f.device]);
  for (const host::Clock& c : found->second.sys) f.clock.join(c);
  return v;
}
inline void store_relaxed_sys(uint32_t* p, uint32_t v) {
  sim().point();
  host::Fiber& f = sim().self();
  sim().settle_stores(p);
  sim().write(p, f.clock, sim().id(), true);
  sim().late.push_back({sim().me, p, v, f.fence_gpu, f.fence_sys});
}
inline void store_release_sys(uint32_t* p, uint32_t v) {
  sim().point();
  sim().settle_stores();
  sim().write(p, sim().self().clock, sim().id(), true);
  sim().put(p, true, &sim().self().clock, &sim().self().clock);
  sim().tick();
  *p = v;
}
inline void add_release(uint32_t* p, bool sys) {
  sim().point();
  sim().settle_stores();
  sim().write(p, sim().self().clock, sim().id(), true);
  sim().put(p, false, &sim().self().clock, sys ? &sim().self().clock : nullptr);
  sim().tick();
  ++*p;
}

inline uint32_t load_acquire_block(const uint32_t* p) {
  sim().change();
  sim().poll(p);
  const auto found = sim().released.find(p);
  if (found != sim().released.end()) sim().self().clock.join(found->second.gpu[sim().self().device]);
  return *p;
}
inline void store_release_block(uint32_t* p, uint32_t v) {
  sim().point();
  sim().write(p, sim().self().clock, sim().id(), true);
  sim().put(p, true, &sim().self().clock, nullptr);
  sim().tick();
  *p = v;
}
inline bool claim(uint32_t* p) {
  sim().point();
  return std::exchange(*p, 1u) == 0;
}

constexpr int BODY_BARRIER = 3;
constexpr int LOOP_BARRIER = 4;

template <int ID, int THREADS>
inline void barrier() {
  sim().point();
  sim().settle_stores();
  host::Fiber& f = sim().self();
  host::Barrier& b = sim().barriers[uint64_t(f.block) * 16 + ID];
  b.clock.join(f.clock);
  if (++b.arrived < THREADS) {
    b.waiting.push_back(sim().me);
    f.blocked = true;
    return sim().change();
  }
  b.waiting.push_back(sim().me);
  for (int i : b.waiting) {
    host::Fiber& other = *sim().fibers[i];
    other.clock.join(b.clock);
    ++other.clock.at[i];
    other.blocked = false;
  }
  b = {};
}
inline void warp_barrier() {}

inline void mbarrier_init(uint64_t* b, uint32_t arrivals) {
  host::Mbarrier m;
  m.arrivals = m.pending = arrivals;
  m.agent = sim().agents++;
  if (m.agent >= host::MOST_AGENTS) sim().fail("too many agents");
  sim().mbarriers[b] = m;
}
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(uint64_t* b) {
  sim().point();
  sim().arrive(b, 0);
}
inline void mbarrier_expect(uint64_t* b, uint32_t bytes) {
  sim().point();
  sim().arrive(b, bytes);
}
inline bool mbarrier_try(uint64_t* b, uint32_t parity) {
  sim().change();
  const host::Mbarrier& m = sim().mbarrier(b);
  if ((m.phase & 1) == parity) return false;
  sim().self().clock.join(m.done);
  return true;
}

inline void bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* b) {
  sim().point();
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16 || bytes % 16 || !bytes)
    sim().fail("a bulk copy that isn't in units of 16 bytes");
  host::Copy c{static_cast<char*>(to), static_cast<const char*>(from), bytes, b, sim().self().clock};
  host::Mbarrier& m = sim().mbarrier(b);
  ++c.clock.at[m.agent];
  for (host::Copy& other : sim().copies)
    if (other.barrier == b) sim().fail("two copies into one stage at a time");
  sim().copies.push_back(c);
  ++sim().all_copies;
}
inline void prefetch(const void*, uint32_t) { ++sim().hints; }
inline void async_fence() {}

inline uint64_t nanoseconds() { return sim().operations * 1000; }
inline void nap(uint32_t) { sim().change(); }

}  // namespace tc
