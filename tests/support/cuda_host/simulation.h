// Warps as fibers that a random scheduler switches between; vector clocks track what orders their accesses.
//
// A CPU like x86 orders nearly everything, so running the protocol there proves little. Here every release puts the
// fiber's clock on what it writes, every acquire takes the clock that it finds, by scope; every plain access must be
// ordered by clocks after the write that it sees, every overwrite after all that was read. Missing order is an error
// even where the values happen to be right. Relaxed stores come late and in any order unless a fence or release follows;
// bulk copies have clocks of their own and finish at random times.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace host {

// A relaxed store on its way: it may come after later ones of the fiber, until a fence or a release.
struct Late {
  int fiber;
  uint32_t* to;
  uint32_t value;
  Clock gpu, sys;
};

struct Fiber {
  jmp_buf jump;
  ucontext_t start;
  std::unique_ptr<char[]> stack;
  std::function<void()> body;
  bool begun = false, done = false, blocked = false;
  uint32_t speed = 16;  // of 16
  int device = 0, block = 0, warp = 0;
  uint32_t number = 0;  // of the block within its device
  Clock clock, fence_gpu, fence_sys, seen_gpu, seen_sys;
};

constexpr size_t STACK = 128 << 10;
constexpr uint64_t MOST_OPERATIONS = 8'000'000;

struct Simulation {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<char*> shared;  // by block
  size_t shared_bytes = 0;
  std::unordered_map<const void*, Shadow> words;
  std::unordered_map<const void*, Released> released;
  std::unordered_map<const void*, Mbarrier> mbarriers;
  std::unordered_map<uint64_t, Barrier> barriers;  // by block and name
  std::vector<Copy> copies;
  std::vector<Late> late;
  uint64_t random, operations = 0, hints = 0, all_copies = 0;
  uint32_t agents = 0, copy_odds = 24, late_odds = 4;  // one in so many: that a copy, a late store is done before others go on
  int me = 0;
  ucontext_t outside;
  std::string error;
  bool ended = false;
  bool quiet = false;  // the host reads results

  uint32_t draw(uint32_t n) {
    random ^= random << 13, random ^= random >> 7, random ^= random << 17;
    return uint32_t((random >> 20) % n);
  }
  Fiber& self() { return *fibers[me]; }
  uint32_t id() const { return uint32_t(me); }

  [[noreturn]] void leave() {
    ended = true;
    setcontext(&outside);
    abort();
  }
  void fail(const std::string& what) {
    const Fiber& f = self();
    error = what + " (device " + std::to_string(f.device) + ", block " + std::to_string(f.block) + ", warp " +
            std::to_string(f.warp) + ")";
    leave();
  }

  static void enter();

  // When the last warp of a block ends, nothing may still be copied to it.
  void check_copies() {
    const int block = self().block;
    for (const auto& f : fibers)
      if (f->block == block && !f->done) return;
    for (const Copy& c : copies)
      if (c.to >= shared[block] && c.to < shared[block] + shared_bytes) fail("a bulk copy outlives its block");
  }

  // Goes on with another fiber, or the same; a copy may finish before.
  void change() {
    if (++operations > MOST_OPERATIONS) fail("no end");
    while (!copies.empty() && draw(copy_odds) == 0) finish(draw(uint32_t(copies.size())));
    while (!late.empty() && draw(late_odds) == 0) land(draw(uint32_t(late.size())));
    int next;
    for (uint32_t tries = 0;; ++tries) {
      next = int(draw(uint32_t(fibers.size())));
      const Fiber& f = *fibers[next];
      if (!f.done && !f.blocked && (draw(16) < f.speed)) break;
      if (tries > 100000) {
        if (copies.empty()) fail("nothing can move");
        finish(0);
        tries = 0;
      }
    }
    if (next == me) return;
    if (!self().done && _setjmp(self().jump)) return;
    me = next;
    if (self().begun) _longjmp(self().jump, 1);
    self().begun = true;
    setcontext(&self().start);
  }
  // A point at which others may run.
  void point() {
    if (draw(3) == 0) change();
  }

  void add(std::function<void()> body, int device, int block, uint32_t number, int warp) {
    auto f = std::make_unique<Fiber>();
    f->body = std::move(body);
    f->device = device, f->block = block, f->number = number, f->warp = warp;
    f->stack.reset(new char[STACK]);
    f->clock.at[fibers.size()] = 1;
    getcontext(&f->start);
    f->start.uc_stack.ss_sp = f->stack.get();
    f->start.uc_stack.ss_size = STACK;
    makecontext(&f->start, &Simulation::enter, 0);
    fibers.push_back(std::move(f));
  }

  void run() {
    agents = uint32_t(fibers.size());
    volatile bool once = false;
    getcontext(&outside);
    if (ended || once) return;
    once = true;
    me = 0;
    self().begun = true;
    setcontext(&self().start);
  }

  // Plain accesses.
  static const void* word(const void* p) { return reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) & ~uintptr_t(3)); }
  bool in_shared(const void* p) const {
    for (const char* m : shared)
      if (p >= m && p < m + shared_bytes) return true;
    return false;
  }
  void check_write(const Shadow& s, const Clock& clock, const char* what) {
    if (s.write.time > clock.at[s.write.agent])
      fail(std::string(what) + " isn't ordered after the write by agent " + std::to_string(s.write.agent));
  }
  void read(const void* p, const Clock& clock, uint32_t agent) {
    Shadow& s = words[word(p)];
    check_write(s, clock, "a read");
    if (!s.write.time && in_shared(p)) fail("a read of shared memory that no thread has written");
    for (Access& r : s.reads)
      if (r.agent == agent) {
        r.time = clock.at[agent];
        return;
      }
    s.reads.push_back({agent, clock.at[agent]});
  }
  void write(const void* p, const Clock& clock, uint32_t agent, bool atomic = false) {
    Shadow& s = words[word(p)];
    if (!(atomic && s.atomic)) check_write(s, clock, "a write");
    for (const Access& r : s.reads)
      if (r.time > clock.at[r.agent]) fail("a write isn't ordered after the read by agent " + std::to_string(r.agent));
    s.reads.clear();
    s.write = {agent, clock.at[agent]};
    s.atomic = atomic;
  }
  void poll(const void* p) {
    const Shadow& s = words[p];
    if (!s.atomic) check_write(s, self().clock, "a poll");
  }

  // Orders. A release at device scope reaches acquires of that device only; one at system scope needs a system-scope
  // acquire elsewhere.
  void tick() { ++self().clock.at[id()]; }
  void seen(const void* p, bool sys) {
    const auto found = released.find(p);
    if (found == released.end()) return;
    Fiber& f = self();
    for (Clock* to : {&f.seen_gpu, &f.seen_sys}) {
      to->join(found->second.gpu[f.device]);
      to->join(found->second.sys[f.device]);
    }
    if (sys)
      for (const Clock& c : found->second.sys) f.seen_sys.join(c);
  }
  void put(const void* p, bool replace, const Clock* gpu, const Clock* sys) {
    Released& r = released[p];
    if (replace) r = {};
    if (gpu) r.gpu[self().device].join(*gpu);
    if (sys) r.sys[self().device].join(*sys);
  }

  // Relaxed stores.
  void land(uint32_t index) {
    Late l = late[index];
    late.erase(late.begin() + index);
    Released& r = released[l.to];
    r = {};
    r.gpu[fibers[l.fiber]->device] = l.gpu;
    r.sys[fibers[l.fiber]->device] = l.sys;
    *l.to = l.value;
  }
  // Lets the fiber's own land, all or those to a word.
  void settle_stores(const uint32_t* to = nullptr) {
    for (uint32_t i = 0; i < late.size();)
      if (late[i].fiber == me && (!to || late[i].to == to))
        land(i);
      else
        ++i;
  }

  // mbarriers.
  Mbarrier& mbarrier(const void* b) {
    const auto found = mbarriers.find(b);
    if (found == mbarriers.end()) fail("an mbarrier that isn't initialised");
    return found->second;
  }
  void settle(Mbarrier& b) {
    if (b.pending || b.bytes) return;
    ++b.phase;
    b.pending = b.arrivals;
    b.done.join(b.now);
    b.now = {};
  }
  void arrive(uint64_t* p, uint32_t bytes) {
    Mbarrier& b = mbarrier(p);
    if (!b.pending) fail("more arrivals at an mbarrier than it counts");
    b.now.join(self().clock);
    tick();
    --b.pending;
    b.bytes += bytes;
    settle(b);
  }
  void finish(uint32_t index) {
    Copy c = copies[index];
    copies.erase(copies.begin() + index);
    Mbarrier& b = mbarrier(c.barrier);
    for (uint32_t i = 0; i < c.bytes; i += 4) {
      read(c.from + i, c.clock, b.agent);
      write(c.to + i, c.clock, b.agent);
    }
    memcpy(c.to, c.from, c.bytes);
    b.now.join(c.clock);
    b.bytes -= c.bytes;
    settle(b);
  }
};

inline Simulation* simulation = nullptr;
inline int bug = 0;  // the mistake that a changed copy of the headers makes
inline Simulation& sim() { return *simulation; }

inline void Simulation::enter() {
  sim().self().body();
  sim().settle_stores();
  sim().self().done = true;
  sim().check_copies();
  sim().change();
}

}  // namespace host
