// A resident kernel on the host: the loop's own text over resident.h, and the engine's bodies, which are functions of other
// translation units.
#include "loop.h"  // c_header, resident.h, ring.cuh, call.cuh, the loop

#include <mutex>
#include <unordered_map>

#include "host_kernel.h"

// A task of a kind on weight runs: addresses and sizes, in order. One at a time.
void run_body(uint32_t kind, const Instruction* ins, const Step* step, const uint64_t* operands, const uint64_t* runs, int count,
              uint32_t seed);

namespace {

struct Job {
  DeviceLaunch launch;
  // The runs of each instruction that has any, by its first row of the tape.
  std::unordered_map<uint32_t, std::vector<const DeviceRun*>> runs;
};
thread_local const Job* job;
std::mutex bodies;
uint32_t seed = 1;

struct Bodies {
  static void run(uint32_t kind, const tc::Call& c) {
    using namespace tc;
    std::vector<std::vector<char>> taken;
    if (c.ins->tape_count) {
      for (const DeviceRun* run : job->runs.at(c.ins->tape_begin)) {
        if (run->expert && *at<const int32_t>(run->expert) < 0) continue;
        taken.emplace_back();
        for (uint32_t done = 0; done < run->bytes; done += SLOT) {
          const char* w = c.ring.wait();
          const uint32_t size = std::min(run->bytes - done, SLOT);
          if (thread() == 0) taken.back().insert(taken.back().end(), w, w + size);
          c.ring.release();
        }
      }
    }
    if (thread() != 0 || load_acquire_block(c.ring.leave)) return;
    std::vector<uint64_t> runs;
    for (const auto& t : taken) runs.insert(runs.end(), {reinterpret_cast<uint64_t>(t.data()), t.size()});
    const std::lock_guard lock(bodies);
    run_body(kind, c.ins, c.step, c.operands, runs.data(), int(taken.size()), ++seed);
    ++blocks->moves;
  }
};

}  // namespace

void* host_kernel_prepare(const char* name, void** parameters) {
  if (strcmp(name, "megakernel")) return nullptr;
  auto* made = new Job;
  memcpy(&made->launch, parameters[0], sizeof(DeviceLaunch));
  return made;
}

int host_kernel_resident(const void*) { return 1; }

void host_kernel_run(void* launch, uint32_t grid, uint32_t block, const int* kill) {
  auto* mine = static_cast<Job*>(launch);
  const DeviceLaunch& l = mine->launch;
  if (grid != l.blocks || block != 288) host::fail("a launch of another size");
  const auto* streams = reinterpret_cast<const DeviceStream*>(l.streams);
  const auto* instructions = reinterpret_cast<const Instruction*>(l.instructions);
  for (uint32_t s = 0; s < l.programs * l.blocks; ++s)
    for (uint32_t r = streams[s].run_begin; r < streams[s].run_end; ++r) {
      const auto* run = reinterpret_cast<const DeviceRun*>(l.runs) + r;
      mine->runs[instructions[run->instruction].tape_begin].push_back(run);
    }
  {
    host::Blocks all(grid, tc::THREADS, tc::SHARED_BYTES);
    all.kill = kill;
    all.body = [](void* p) { tc::resident<Bodies>(*static_cast<const DeviceLaunch*>(p)); };
    all.argument = &mine->launch;
    host::blocks = &all;
    job = mine;
    all.run();
  }
  delete mine;
}
