// What a task body sees of its instruction: operands, tile coordinates, weights, the step, scratch memory.
//
// All CONSUMERS threads of the block run the body. Its stores are visible to the tasks that wait for it once it returns.
#pragma once

#ifndef TC_SCRATCH_BYTES
#define TC_SCRATCH_BYTES 0
#endif
#ifndef TC_SHARED_BYTES
#define TC_SHARED_BYTES (227 * 1024)
#endif

namespace tc {

constexpr uint32_t FRONT_BYTES = 2048;                                    // of shared memory, for the loop: `Block`
constexpr uint32_t SCRATCH_BYTES = (TC_SCRATCH_BYTES + 1023) / 1024 * 1024;  // behind it, for bodies
constexpr uint32_t SHARED_BYTES = TC_SHARED_BYTES;                        // all that a block may have
static_assert(FRONT_BYTES + SCRATCH_BYTES + 2 * SLOT <= SHARED_BYTES, "no room for the ring");
constexpr int STAGES = (SHARED_BYTES - FRONT_BYTES - SCRATCH_BYTES) / SLOT;

using Ring = RingOf<STAGES>;

struct Call {
  const Instruction* ins;    // in shared memory
  const Step* step;          // in shared memory
  const uint64_t* operands;  // addresses of the instruction's operands
  char* scratch;             // SCRATCH_BYTES of shared memory, 1024-byte aligned; nothing survives the body
  Ring& ring;
  int thread = fresh_thread();

  TC_DEVICE int lane() const { return thread & (LANES - 1); }
  TC_DEVICE int warp() const { return thread / LANES; }
  TC_DEVICE int tile(int i) const { return ins->tile[i]; }

  // Address of operand i.
  template <class E>
  TC_DEVICE E* arg(int i) const {
    return reinterpret_cast<E*>(operands[i]);
  }
};

// All consumers.
TC_DEVICE void body_barrier() { barrier<BODY_BARRIER, CONSUMERS>(); }

}  // namespace tc
