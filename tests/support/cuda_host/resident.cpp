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
  DeviceLaunch record;
  const DeviceFill* fills = nullptr;  // of the other kernel
  uint32_t seed;
  // The runs of each instruction that has any, by its first row of the tape.
  std::unordered_map<uint32_t, std::vector<const DeviceRun*>> runs;
};
thread_local const Job* current;
std::mutex bodies;
uint32_t order = 1;

struct Bodies {
  static void run(uint32_t kind, const tc::Call& c) {
    using namespace tc;
    std::vector<std::vector<char>> taken;
    if (c.ins->tape_count) {
      for (const DeviceRun* run : current->runs.at(c.ins->tape_begin)) {
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
    run_body(kind, c.ins, c.step, c.operands, runs.data(), int(taken.size()), ++order);
    ++blocks->moves;
  }
};

}  // namespace

static const Job* resident(const void* launch) {
  const auto* it = static_cast<const Job*>(launch);
  return it->fills ? nullptr : it;
}

void* host_kernel_prepare(const char* name, void** parameters) {
  if (strcmp(name, MEGAKERNEL) && strcmp(name, FILL)) return nullptr;
  auto* made = new Job;
  if (!strcmp(name, MEGAKERNEL)) {
    memcpy(&made->record, parameters[0], sizeof(DeviceLaunch));
  } else {
    memcpy(&made->fills, parameters[0], sizeof made->fills);
    memcpy(&made->seed, parameters[1], sizeof made->seed);
  }
  return made;
}

int host_kernel_resident(const void* launch) { return resident(launch) != nullptr; }

static void run_resident(Job& launch, uint32_t grid, uint32_t block, const int* kill) {
  const DeviceLaunch& l = launch.record;
  if (grid != l.blocks || block != BLOCK_THREADS) host::fail("a launch of another size");
  const auto* streams = reinterpret_cast<const DeviceStream*>(l.streams);
  const auto* instructions = reinterpret_cast<const Instruction*>(l.instructions);
  for (uint32_t s = 0; s < l.program_count * l.blocks; ++s)
    for (uint32_t r = streams[s].run_begin; r < streams[s].run_end; ++r) {
      const auto* run = reinterpret_cast<const DeviceRun*>(l.runs) + r;
      launch.runs[instructions[run->instruction].tape_begin].push_back(run);
    }
  host::Blocks all(grid, tc::THREADS, tc::SHARED_BYTES);
  all.kill = kill;
  all.body = [](void* p) { tc::resident<Bodies>(*static_cast<const DeviceLaunch*>(p)); };
  all.argument = &launch.record;
  host::blocks = &all;
  current = &launch;
  all.run();
}

void host_kernel_run(void* launch, uint32_t grid, uint32_t block, const int* kill) {
  auto* mine = static_cast<Job*>(launch);
  if (resident(mine)) {
    run_resident(*mine, grid, block, kill);
  } else {  // one thread a block, one after the other
    host::Blocks one(1, 1, 1024);
    host::blocks = &one;
    for (one.self().block = 0; one.self().block < grid; ++one.self().block) tc::random_fill(mine->fills, mine->seed, 1);
  }
  delete mine;
}
