// What tests/support/cuda_bodies.py calls: runs one task of a kind.
#pragma once
#include <signal.h>

namespace tc {

struct Task {
  const Instruction* ins;
  const Step* step;
  const uint64_t* operands;
  char* scratch;
  void (*body)(const Call&);
};

inline void run_task(void* p) {
  const Task& task = *static_cast<Task*>(p);
  Ring ring{};
  task.body(Call{task.ins, task.step, task.operands, task.scratch, ring});
  if (ring.n != slots.given.size()) fail("a body took " + std::to_string(ring.n) + " slots of " + std::to_string(slots.given.size()));
}

inline sigjmp_buf outside;
inline void* fault;
inline void on_fault(int, siginfo_t* info, void*) {
  fault = info->si_addr;
  siglongjmp(outside, 1);
}

}  // namespace tc

// Runs one task: the address at which it faulted, or null. `runs`: addresses and sizes of the weight runs that the loader
// copies, in order.
extern "C" void* run(const Instruction* ins, const Step* step, const uint64_t* operands, const uint64_t* runs, int count,
                    char* scratch, uint32_t seed) {
  using namespace tc;
  slots = Slots{};
  for (int i = 0; i < Slots::HELD; ++i) slots.poison(i);
  for (int i = 0; i < count; ++i) {
    const char* begin = reinterpret_cast<const char*>(runs[2 * i]);
    for (uint64_t at = 0; at < runs[2 * i + 1]; at += SLOT)
      slots.given.emplace_back(begin + at, begin + std::min<uint64_t>(at + SLOT, runs[2 * i + 1]));
  }
  Task task{ins, step, operands, scratch, BODIES[ins->kind]};
  struct sigaction ours = {}, theirs;
  ours.sa_sigaction = on_fault;
  ours.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &ours, &theirs);
  fault = nullptr;
  if (!sigsetjmp(outside, 1)) run_threads(run_task, &task, seed);
  sigaction(SIGSEGV, &theirs, nullptr);
  if (!fault && slots.released != slots.given.size()) fail("not all slots were released");
  return fault;
}
