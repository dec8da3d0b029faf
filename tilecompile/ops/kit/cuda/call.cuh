// What a task body sees of its instruction: operands, tile coordinates, weights, the step, scratch memory.
//
// All CONSUMERS threads of the block run the body. Its stores are visible to the tasks that wait for it once it returns.
#pragma once

namespace tc {

struct Call {
  const Instruction* ins;    // in shared memory
  const Step* step;          // in shared memory
  const uint64_t* operands;  // addresses of the instruction's operands
  char* scratch;             // SCRATCH_BYTES of shared memory, aligned to SCRATCH_ALIGN; nothing survives the body
  Ring& ring;
  int thread = fresh_thread();

  TC_DEVICE int lane() const { return thread & (LANES - 1); }
  TC_DEVICE int warp() const { return thread / LANES; }
  TC_DEVICE int tile(int i) const { return ins->tile[i]; }

  // How many of the MOST tokens that an operand has room for the step carries, at least 1: bodies leave the rows of other
  // tokens alone.
  template <int MOST>
  TC_DEVICE int tokens() const {
    if constexpr (MOST == 1) return 1;
    return step->tokens < MOST ? int(step->tokens) : MOST;
  }
  // Address of operand i.
  template <class E>
  TC_DEVICE E* arg(int i) const {
    return reinterpret_cast<E*>(operands[i]);
  }
};

// All consumers.
TC_DEVICE void body_barrier() { barrier<BODY_BARRIER, CONSUMERS>(); }

}  // namespace tc
