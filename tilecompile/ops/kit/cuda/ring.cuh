// The weight ring: slots of shared memory that the loader fills in the order of the tape, and consumers empty.
//
// Slots are numbered from the launch on, without reset: slot n is in stage n mod STAGES, in phase n / STAGES. Producer
// and consumers count them separately, so each must take exactly the slots that the other one gives: a run of weights
// is cut in pieces of SLOT bytes, of which the last may be short. Their number and size are the block's
// (runtime/format/block.py).
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

constexpr uint32_t POLLS = 256;  // between two reads of the clock

// How long a thread has been waiting.
struct Patience {
  uint32_t polls = 0;
  uint64_t since = 0;

  // Called at every poll. True at every POLLS-th, when the thread checks for a time-out or an abort.
  TC_DEVICE bool tick() {
    if (++polls % POLLS) return false;
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
  uint32_t* leave;        // the block is about to end: waits return without their bytes
  uint64_t stall_ns;      // time-out of a wait
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
