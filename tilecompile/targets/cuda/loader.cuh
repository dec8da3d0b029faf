// The loader: one thread. Copies the worker's weight runs into the ring, in their order, step after step.
//
// It waits for nothing but free slots, except at a conditional run: whether a step skips it, and which expert it reads, is
// known once the step has begun and the expert's event has arrived. Consumers don't notify that the instruction is
// done before it has decided, so that it is never a step behind them. With one program it begins a step as early as the
// ring allows. Where several are launched it begins one when they do, or a step earlier if the record of the step before
// says what follows.
#pragma once

namespace tc {

struct Loader {
  const Worker& w;
  char* slots;
  Place place;
  uint32_t steps = 0, passed = 0;

  // Waits until the consumers have begun that step of the block. False if the block ends.
  TC_DEVICE bool await_step(uint32_t step) const {
    Patience patience;
    while (int32_t(load_acquire_block(&w.b.taken) - step) < 0)
      if (w.ends(patience)) return false;
    return true;
  }

  // Decides about a conditional run: null if this step skips it. False if the block ends.
  TC_DEVICE bool decide(const DeviceRun& run, const char*& source) {
    if (run.hint != NONE) {
      const DeviceRun next = load(at<DeviceRun>(w.l.runs) + run.hint);
      prefetch(at<char>(next.source), next.bytes < HINT_BYTES ? next.bytes : HINT_BYTES);
    }
    if (!await_step(steps)) return false;
    const Step* step = &w.b.steps[steps % 2];
    if ((run.flags & PREDICATED) && !(load(&step->flags) & NEEDS_LOGITS)) {
      source = nullptr;
    } else if (run.expert) {
      const uint32_t want = load(&step->run) * run.count;
      if (!w.await(run.counter, run.event, want, run.instruction, load(&step->sequence), 1)) return false;
      fence(run.counter & REMOTE);
      const int32_t expert = load(at<int32_t>(run.expert));
      source = expert < 0 ? nullptr : source + run.stride * uint64_t(expert);
    }
    store_release_block(&w.b.passed, ++passed);
    return true;
  }

  // Copies a run slot by slot. False if the block ends.
  TC_DEVICE bool copy(const char* source, uint32_t bytes) {
    Patience patience;
    for (uint32_t done = 0; done < bytes; done += SLOT) {
      while (!mbarrier_try(w.b.empty + place.stage, place.parity ^ 1))
        if (w.ends(patience)) return false;
      const uint32_t size = bytes - done < SLOT ? bytes - done : SLOT;
      mbarrier_expect(w.b.full + place.stage, size);
      bulk_copy(slots + size_t(place.stage) * SLOT, source + done, size, w.b.full + place.stage);
      place.next();
    }
    return true;
  }

  // The program of the loader's step. False if the block ends.
  TC_DEVICE bool find_program(uint32_t& program) const {
    program = NONE;
    if (steps > 1) {
      if (!await_step(steps - 1)) return false;
      program = load(&w.b.steps[(steps - 1) % 2].follower);
      // The block takes up every step in which it has instructions, but another one it may miss.
      if (program != NONE) {
        const DeviceStream stream = w.stream(program);
        if (stream.begin == stream.end) program = NONE;
      }
    }
    if (program == NONE) {
      if (!await_step(steps)) return false;
      program = load(&w.b.steps[steps % 2].program);
    }
    store_release_block(&w.b.begun, steps);
    return true;
  }

  TC_DEVICE bool step() {
    ++steps;
    uint32_t program = w.l.only_program;
    if (program == NONE && !find_program(program)) return false;
    const DeviceStream stream = w.stream(program);
    if (w.l.only_program != NONE && stream.run_begin == stream.run_end) return false;
    DeviceRun ahead = {};
    if (stream.run_begin < stream.run_end) ahead = load(at<DeviceRun>(w.l.runs) + stream.run_begin);
    for (uint32_t r = stream.run_begin; r < stream.run_end; ++r) {
      const DeviceRun run = ahead;
      if (r + 1 < stream.run_end) ahead = load(at<DeviceRun>(w.l.runs) + r + 1);
      const char* source = at<char>(run.source);
      if ((run.flags & CONDITIONAL) && !decide(run, source)) return false;
      if (source && !copy(source, run.bytes)) return false;
    }
    return true;
  }

  TC_DEVICE void run() {
    while (step()) {
    }
    for (int i = 0; i < STAGES; ++i, place.next())  // no copy may come after the block
      while (!mbarrier_try(w.b.full + place.stage, place.parity ^ 1)) {
      }
  }
};

}  // namespace tc
