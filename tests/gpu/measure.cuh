// Kernels that measure a GPU: how fast the ring can be filled when nothing is computed, and how fast an event is seen.
#pragma once

namespace tc {

// Each block streams its part of `bytes`, in runs of `run_bytes`, through the ring; its consumers only give slots back.
struct StreamLaunch {
  uint64_t memory, bytes, run_bytes;
  uint64_t failed;  // u32: becomes 1 where a block has waited for too long
  uint32_t times, blocks;
};
static_assert(sizeof(StreamLaunch) == 40);

TC_DEVICE void stream(const StreamLaunch& l) {
  struct Front {
    uint64_t full[STAGES], empty[STAGES];
    uint32_t leave;
  };
  static_assert(sizeof(Front) <= FRONT_BYTES);
  constexpr uint64_t LONG_NS = 2000000000;
  Front& b = *reinterpret_cast<Front*>(shared_memory());
  if (thread() == 0) {
    for (int i = 0; i < STAGES; ++i) {
      mbarrier_init(b.full + i, 1);
      mbarrier_init(b.empty + i, CONSUMER_WARPS);
    }
    mbarrier_init_fence();
    b.leave = 0;
  }
  barrier<0, THREADS>();
  char* slots = shared_memory() + FRONT_BYTES + SCRATCH_BYTES;
  const uint64_t runs = l.bytes / l.run_bytes;
  if (thread() < CONSUMERS) {
    Ring ring{slots, b.full, b.empty, &b.leave, LONG_NS, {}};
    for (uint32_t t = 0; t < l.times; ++t)
      for (uint64_t r = block(); r < runs; r += l.blocks)
        for (uint64_t done = 0; done < l.run_bytes; done += SLOT) {
          ring.wait();
          ring.release();
        }
  } else if (lane() == 0) {
    Place place;
    Patience patience;
    bool go = true;
    for (uint32_t t = 0; t < l.times && go; ++t)
      for (uint64_t r = block(); r < runs && go; r += l.blocks)
        for (uint64_t done = 0; done < l.run_bytes && go; done += SLOT) {
          while (go && !mbarrier_try(b.empty + place.stage, place.parity ^ 1))
            go = !load_acquire_block(&b.leave) && !(patience.tick() && patience.over(LONG_NS));
          if (!go) break;
          const uint32_t size = l.run_bytes - done < SLOT ? uint32_t(l.run_bytes - done) : SLOT;
          mbarrier_expect(b.full + place.stage, size);
          bulk_copy(slots + size_t(place.stage) * SLOT, reinterpret_cast<const char*>(l.memory) + r * l.run_bytes + done,
                    size, b.full + place.stage);
          place.next();
        }
    for (int i = 0; i < STAGES; ++i, place.next())  // no copy may come after the block
      while (!mbarrier_try(b.full + place.stage, place.parity ^ 1)) {
      }
  }
  warp_barrier();
  barrier<0, THREADS>();
  if (thread() == 0 && load_acquire_block(&b.leave)) store_relaxed_sys(reinterpret_cast<uint32_t*>(l.failed), 1);
}

// Reads memory by plain loads of 16 bytes, eight at a time.
struct ReadLaunch {
  uint64_t memory, words;  // of 16 bytes
  uint64_t sum;            // u32
  uint32_t grid, reserved;
};
static_assert(sizeof(ReadLaunch) == 32);

TC_DEVICE void plain_read(const ReadLaunch& l) {
  struct alignas(16) Word {
    uint32_t v[4];
  };
  const Word* const words = reinterpret_cast<const Word*>(l.memory);
  const uint64_t step = uint64_t(l.grid) * THREADS;
  uint32_t sum = 0;
  for (uint64_t i = uint64_t(block()) * THREADS + thread(); i + 7 * step < l.words; i += 8 * step) {
    Word w[8];
    TC_UNROLL for (int k = 0; k < 8; ++k) w[k] = load(words + i + k * step);
    TC_UNROLL for (int k = 0; k < 8; ++k) sum ^= w[k].v[0] ^ w[k].v[1] ^ w[k].v[2] ^ w[k].v[3];
  }
  if (sum == 0x12345678) store(reinterpret_cast<uint32_t*>(l.sum), sum);  // so that it is computed
}

// Two blocks answer each other `times` times, each through a counter and 128 bytes of data that the event announces, as
// two tasks of the resident kernel do: barrier, release; poll, fence, barrier, load. [0] of `ns` becomes the time of all.
struct PingLaunch {
  uint64_t counters;  // u32, one each 128 bytes; zeroed
  uint64_t data;      // u32 [2][32], zeroed
  uint64_t ns;        // u64 [1]
  uint64_t failed;    // u32: wrong data, or no answer
  uint32_t times, sys;
};
static_assert(sizeof(PingLaunch) == 40);

TC_DEVICE void ping(const PingLaunch& l) {
  uint32_t* const failed = reinterpret_cast<uint32_t*>(l.failed);
  if (block() > 1 || thread() >= CONSUMERS) return;
  const uint32_t me = block(), other = 1 - me;
  uint32_t* const counters = reinterpret_cast<uint32_t*>(l.counters);
  uint32_t* const data = reinterpret_cast<uint32_t*>(l.data);
  const uint64_t begin = nanoseconds();
  Patience patience;
  bool late = false;  // then it waits no more, so that all threads come to an end
  for (uint32_t t = 1; t <= l.times; ++t) {
    if (me == 1 || t > 1) {
      const uint32_t want = me == 1 ? t : t - 1;
      if (thread() / LANES == 0) {
        while (!late && poll(counters + other * 32, l.sys) < want) late = patience.tick() && patience.over(2000000000);
        if (late) store_relaxed_sys(failed, 1);
        fence(l.sys);
      }
      barrier<LOOP_BARRIER, CONSUMERS>();
      if (thread() < LANES && load(data + other * 32 + lane()) != want) store_relaxed_sys(failed, 2);
    }
    if (thread() < LANES) store(data + me * 32 + lane(), t);
    barrier<LOOP_BARRIER, CONSUMERS>();
    if (thread() == 0) add_release(counters + me * 32, l.sys);
  }
  if (me == 0 && thread() == 0) store(reinterpret_cast<uint64_t*>(l.ns), nanoseconds() - begin);
}

// Fills memory with bytes that are finite numbers of both signs as fp8 (from 1 on), bf16 and f32 (from 2^-15 on), all
// below 2.
struct FillLaunch {
  uint64_t memory, words;  // u32 words
  uint32_t seed, grid;
};
static_assert(sizeof(FillLaunch) == 24);

TC_DEVICE void fill(const FillLaunch& l) {
  uint32_t* const words = reinterpret_cast<uint32_t*>(l.memory);
  for (uint64_t i = block() * uint64_t(THREADS) + thread(); i < l.words; i += l.grid * uint64_t(THREADS)) {
    uint64_t x = i + l.seed * 0x9E3779B97F4A7C15u;  // SplitMix64 (Steele, Lea, Flood 2014)
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    words[i] = (uint32_t(x ^ (x >> 31)) & 0x87878787u) | 0x38383838u;
  }
}

}  // namespace tc
