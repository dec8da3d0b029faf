// One launch for one operator's tasks: each block runs one instruction, with the resident kernel's own bodies and ring.
//
// It waits for no events: launches follow each other. With programmatic launches a block's loader begins with weights
// while the launch before is at work, and only what reads activations waits for its end.
#pragma once

namespace tc {

// What a block runs, and where its weight runs are.
struct TaskRow {
  uint32_t instruction, run_begin, run_end, reserved;
};

struct TaskLaunch {
  uint64_t instructions;  // as in DeviceLaunch
  uint64_t operands;      // likewise
  uint64_t runs;          // DeviceRun
  uint64_t rows;          // TaskRow, one a block from `first` on
  uint64_t step;          // Step
  uint64_t failed;        // u32: becomes 1 where a block has waited for too long
  uint64_t stall_ns;
  uint32_t first, reserved;
};
static_assert(sizeof(TaskLaunch) == 64);

// All memory that earlier launches have written is there; returns at once without a programmatic launch.
TC_DEVICE void await_launches() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// The next launch may begin as soon as there is room.
TC_DEVICE void let_next_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

struct TaskBlock {
  uint64_t full[STAGES], empty[STAGES];
  Instruction ins;
  Step step;
  uint32_t leave;
};
static_assert(sizeof(TaskBlock) <= FRONT_BYTES);

struct TaskLoader {
  const TaskLaunch& l;
  TaskBlock& b;
  char* slots;
  Place place;

  TC_DEVICE bool copy(const char* source, uint32_t bytes) {
    Patience patience;
    for (uint32_t done = 0; done < bytes; done += SLOT) {
      while (!mbarrier_try(b.empty + place.stage, place.parity ^ 1))
        if (load_acquire_block(&b.leave) || (patience.tick() && patience.over(l.stall_ns))) return false;
      const uint32_t size = bytes - done < SLOT ? bytes - done : SLOT;
      mbarrier_expect(b.full + place.stage, size);
      bulk_copy(slots + size_t(place.stage) * SLOT, source + done, size, b.full + place.stage);
      place.next();
    }
    return true;
  }

  TC_DEVICE void run(const TaskRow& row) {
    for (uint32_t r = row.run_begin; r < row.run_end; ++r) {
      const DeviceRun run = load(reinterpret_cast<const DeviceRun*>(l.runs) + r);
      const char* source = reinterpret_cast<const char*>(run.source);
      if ((run.flags & PREDICATED) && !(b.step.flags & NEEDS_LOGITS)) continue;
      if (run.expert) {
        await_launches();
        const int32_t expert = load(reinterpret_cast<const int32_t*>(run.expert));
        if (expert < 0) continue;
        source += run.stride * uint64_t(expert);
      }
      if (!copy(source, run.bytes)) break;
    }
    for (int i = 0; i < STAGES; ++i, place.next())  // no copy may come after the block
      while (!mbarrier_try(b.full + place.stage, place.parity ^ 1)) {
      }
  }
};

template <class Bodies>
TC_DEVICE void one_task(const TaskLaunch& l) {
  let_next_begin();
  TaskBlock& b = *reinterpret_cast<TaskBlock*>(shared_memory());
  const TaskRow row = load(reinterpret_cast<const TaskRow*>(l.rows) + l.first + block());
  if (thread() == 0) {
    for (int i = 0; i < STAGES; ++i) {
      mbarrier_init(b.full + i, 1);
      mbarrier_init(b.empty + i, CONSUMER_WARPS);
    }
    mbarrier_init_fence();
    b.leave = 0;
    b.ins = load(reinterpret_cast<const Instruction*>(l.instructions) + row.instruction);
    b.step = load(reinterpret_cast<const Step*>(l.step));
  }
  barrier<0, THREADS>();
  char* slots = shared_memory() + FRONT_BYTES + SCRATCH_BYTES;
  if (thread() < CONSUMERS) {
    await_launches();
    Ring ring{slots, b.full, b.empty, &b.leave, l.stall_ns, {}};
    if (!(b.ins.flags & PREDICATED) || (b.step.flags & NEEDS_LOGITS))
      Bodies::run(b.ins.kind, Call{&b.ins, &b.step, reinterpret_cast<const uint64_t*>(l.operands) + b.ins.operand_begin,
                                   shared_memory() + FRONT_BYTES, ring});
  } else if (lane() == 0) {
    TaskLoader{l, b, slots, {}}.run(row);
  }
  warp_barrier();
  barrier<0, THREADS>();
  if (thread() == 0 && load_acquire_block(&b.leave)) store_relaxed_sys(reinterpret_cast<uint32_t*>(l.failed), 1);
}

}  // namespace tc
