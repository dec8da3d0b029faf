// The weight ring: slots of shared memory that the loader fills in the order of the tape, and consumers empty.
//
// Slots are numbered from the launch on and never begin anew: slot n lies at n mod STAGES, in phase n / STAGES. Both
// sides count them for themselves, so each must take exactly the slots that the other one gives: a run of weights is cut
// in pieces of SLOT bytes, of which the last may be short. Their number and size are the block's (runtime/format/block.py).
#pragma once

namespace tc {

// Where a thread is in the ring.
struct Place {
  uint32_t stage = 0, parity = 0;
  TC_DEVICE void next() {
    if (++stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
};

constexpr uint32_t LOOKS = 256;  // at what a thread waits for between two looks at the clock

// How long a thread has been waiting.
struct Patience {
  uint32_t looks = 0;
  uint64_t since = 0;

  // Called at every look: whether it is one after which the thread looks around.
  TC_DEVICE bool tick() {
    if (++looks % LOOKS) return false;
    if (!since) since = nanoseconds();
    return true;
  }
  TC_DEVICE bool over(uint64_t ns) const { return nanoseconds() - since > ns; }
};

// What a body takes weights from. Every consumer warp takes every slot of its instruction, in order:
//
//   const char* w = c.ring.wait();   // the next slot's bytes, once they are there
//   ...
//   c.ring.release();                // the warp has read them
struct Ring {
  char* slots;
  uint64_t* full;         // one a stage: ends a phase when the bytes are there
  uint64_t* empty;        // one a stage: ends a phase when all consumer warps have released
  uint32_t* leave;        // the block is about to end: what waits gets what isn't there
  uint64_t stall_ns;      // time after which no weights will come any more
  Place place;

  TC_DEVICE const char* wait() {
    Patience patience;
    while (!mbarrier_try(full + place.stage, place.parity) && !load_acquire_block(leave))
      if (patience.tick() && patience.over(stall_ns)) store_release_block(leave, 1);
    return slots + size_t(place.stage) * SLOT;
  }
  TC_DEVICE void release() {
    warp_barrier();
    if (lane() == 0) mbarrier_arrive(empty + place.stage);
    place.next();
  }
};

}  // namespace tc
