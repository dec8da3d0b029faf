// The persistent loop: one launch for the engine's life, a block a worker.
//
// A block's consumers run the instructions of the worker's stream, in order; its loader fills the ring with the weights
// that they take, as far ahead as the ring allows, into the next layers and steps. An instruction starts when its
// events' counters have reached run * count; counters only grow and are never cleared. The sink's block is the
// controller: it takes requests from the mailbox and publishes a record for each step, to all devices.
#pragma once

namespace tc {

static_assert(CONSUMER_WARPS >= 3, "three warps fetch what comes next");

// The consumers: all of them run the bodies, warp 0 waits and notifies for them.
template <class Bodies>
struct Consumers {
  const Worker& w;
  Ring ring;
  uint32_t k = 0;        // instructions so far
  uint32_t steps = 0;    // steps so far
  uint32_t passed = 0;   // conditional runs so far
  uint32_t program = NONE;

  TC_DEVICE static void meet() { barrier<LOOP_BARRIER, CONSUMERS>(); }
  TC_DEVICE static int warp() { return thread() / LANES; }

  // Words on their way from a table to shared memory, a few a lane.
  struct Words {
    static constexpr uint32_t MOST = 32;
    uint32_t* to = nullptr;
    uint32_t count = 0, words[MOST / LANES];

    TC_DEVICE void fetch(const void* from, void* target, uint32_t number) {
      to = static_cast<uint32_t*>(target);
      count = number;
      TC_UNROLL for (uint32_t i = 0; i < MOST / LANES; ++i) {
        const uint32_t j = i * LANES + lane();
        words[i] = j < count ? load(static_cast<const uint32_t*>(from) + j) : 0;
      }
    }
    TC_DEVICE void put() const {
      TC_UNROLL for (uint32_t i = 0; i < MOST / LANES; ++i) {
        const uint32_t j = i * LANES + lane();
        if (j < count) store(to + j, words[i]);
      }
    }
  };

  TC_DEVICE void fetch_instruction(Words& words, uint32_t pc, uint32_t number) const {
    words.fetch(at<Instruction>(w.l.instructions) + pc, &w.b.ins[number % 3], sizeof(Instruction) / 4);
  }
  TC_DEVICE static uint32_t fetched(uint32_t count) { return count < FETCHED ? count : FETCHED; }
  TC_DEVICE void fetch_waits(Words& words, uint32_t number) const {
    const Instruction& ins = w.b.ins[number % 3];
    const uint32_t count = fetched(load(&ins.wait_count));
    words.fetch(at<DeviceWait>(w.l.waits) + load(&ins.wait_begin), w.b.waits[number % 2], count * sizeof(DeviceWait) / 4);
  }
  TC_DEVICE void fetch_notifies(Words& words, uint32_t number) const {
    const Instruction& ins = w.b.ins[number % 3];
    const uint32_t count = fetched(load(&ins.notify_count));
    words.fetch(at<DeviceNotify>(w.l.notifies) + load(&ins.notify_begin), w.b.notifies[number % 2],
                count * sizeof(DeviceNotify) / 4);
  }

  // Fetches what the coming instructions find in shared memory, at the start of another program's stream.
  TC_DEVICE void refill(const DeviceStream& s) const {
    Words words;
    if (warp() < 2) {
      fetch_instruction(words, warp() == 0 || s.begin + 1 == s.end ? s.begin : s.begin + 1, k + warp());
      words.put();
    }
    meet();
    if (warp() == 0) fetch_waits(words, k);
    if (warp() == 1) fetch_notifies(words, k);
    if (warp() < 2) words.put();
    meet();
  }

  // Thread 0: waits for the next step and copies its record. False if the kernel ends.
  TC_DEVICE bool await_step(uint32_t sequence) const {
    const Controller controller{w, w.b.control};
    uint32_t polls = 0, pause = 32;
    if (w.l.only_program == NONE)  // the loader reads the record that the next one replaces
      if (!w.await_agent(&w.b.begun, steps, NONE, sequence)) return false;
    Step& to = w.b.steps[(steps + 1) % 2];
    for (;;) {
      if (w.controls() && !w.b.control.running) controller.poll_mailbox();
      if (w.controls() && w.b.control.paused) controller.poll_mask();
      const uint32_t n = poll(&w.board.sequence, w.several);
      if (n != sequence) {
        fence(w.several);
        const uint32_t* from = reinterpret_cast<const uint32_t*>(&w.board.steps[n % 2]);
        for (uint32_t i = 0; i < sizeof(Step) / 4; ++i)
          store(reinterpret_cast<uint32_t*>(&to) + i, poll(from + i, w.several));
        fence(w.several);
        // A worker without instructions in a step isn't waited for, so two steps may have begun meanwhile: poll again.
        if (poll(&w.board.sequence, w.several) != n) continue;
        if (load(&to.program) == NONE) return false;
        store_release_block(&w.b.taken, steps + 1);
        return true;
      }
      if (poll(&w.board.leave, w.several)) return false;
      if (w.leaving()) {
        w.give_up(NONE, sequence);
        return false;
      }
      if (++polls < EAGER_POLLS) continue;
      nap(pause);
      if (pause < LONGEST_NAP) pause *= 2;
    }
  }

  // Takes up the next step. False if the kernel ends.
  TC_DEVICE bool take_step() {
    if (thread() == 0) {
      const bool go = await_step(steps ? load(&w.b.steps[steps % 2].sequence) : 0);
      if (!go) w.leave();
      store(&w.b.go, uint32_t(go));
    }
    meet();
    const bool go = load(&w.b.go);
    ++steps;
    meet();
    return go;
  }

  // Warp 0: waits until the instruction may start, then lets the others see whether it does.
  TC_DEVICE void open(const Instruction& ins, uint32_t pc, const Step& step) const {
    const uint32_t count = load(&ins.wait_count);
    bool remote = false;
    for (uint32_t i = lane(); i < count; i += LANES) {
      const DeviceWait wait = load(i < FETCHED ? &w.b.waits[k % 2][i] : at<DeviceWait>(w.l.waits) + load(&ins.wait_begin) + i);
      remote |= wait.counter & REMOTE;
      if (!w.await(wait.counter, wait.event, load(&step.run) * wait.count, pc, load(&step.sequence), 0)) break;
    }
    if (uint32_t(lane()) < count) fence(remote);
    if (remote && w.l.latency_ns) pause(w.l.latency_ns);
    warp_barrier();
    if (lane() != 0) return;
    const bool go = !w.leaving();
    store(&w.b.go, uint32_t(go));
    if (!go) w.give_up(pc, load(&step.sequence));
  }

  // Warp 0: notifies the instruction's events, once all consumers have done it and the loader has decided about its
  // runs: it reads what a next step writes.
  TC_DEVICE void notify(const Instruction& ins, uint32_t pc) const {
    if (lane() == 0) w.await_agent(&w.b.passed, passed, pc, load(&w.b.steps[steps % 2].sequence));
    warp_barrier();
    const uint32_t count = load(&ins.notify_count);
    for (uint32_t i = lane(); i < count; i += LANES) {
      const DeviceNotify notify =
          load(i < FETCHED ? &w.b.notifies[k % 2][i] : at<DeviceNotify>(w.l.notifies) + load(&ins.notify_begin) + i);
      add_release(counter_of(notify.counter), notify.counter & REMOTE);
    }
  }

  // The logits of the prompt's positions in a step, for a request that asks for all of them.
  TC_DEVICE void keep_logits(const Step& step) const {
    const Controller controller{w, w.b.control};
    const Asked asked = controller.asked();
    const uint32_t before = fed_of(asked, step.position), count = fed_of(asked, step.context) - before;
    const StepProgram& program = w.b.control.programs[step.program];
    if (!asked.every_logit || !count || program.drafts) return;
    float* to = at<float>(w.b.control.mail.logits) + size_t(before) * w.l.vocab;
    const float* from = at<float>(program.logits);
    for (uint32_t i = thread(); i < count * w.l.vocab; i += CONSUMERS) store(to + i, load(from + i));
    body_barrier();
  }

  // Runs one instruction. False if the kernel ends.
  TC_DEVICE bool instruction(uint32_t pc, const DeviceStream& s) {
    const Instruction& ins = w.b.ins[k % 3];
    const Step& step = w.b.steps[steps % 2];
    if (load(&ins.flags) & CONDITIONAL) passed += load(&ins.tape_count);
    if (warp() == 0) open(ins, pc, step);
    meet();
    if (!load(&w.b.go)) return false;
    stamp(pc, step, 0);
    Words words;
    const uint32_t after = s.end - pc > 2 ? pc + 2 : s.begin + (2 - (s.end - pc)) % (s.end - s.begin);
    if (warp() == 0) fetch_instruction(words, after, k + 2);
    if (warp() == 1) fetch_waits(words, k + 1);
    if (warp() == 2) fetch_notifies(words, k + 1);
    if (load(&ins.kind) == COMMIT_KIND) {
      keep_logits(step);
      if (thread() == 0) Controller{w, w.b.control}.settle(step);
      if (w.b.control.mail.logprobs) {
        body_barrier();
        keep_log_probabilities(w, step, shared_memory() + FRONT_BYTES);
        body_barrier();
      }
      if (thread() == 0) Controller{w, w.b.control}.commit(step);
    } else if (!(load(&ins.flags) & PREDICATED) || (load(&step.flags) & NEEDS_LOGITS)) {
      Bodies::run(load(&ins.kind),
                  Call{&ins, &step, at<uint64_t>(w.l.operands) + load(&ins.operand_begin), shared_memory() + FRONT_BYTES, ring});
    }
    if (warp() < 3) words.put();
    meet();
    if (warp() == 0) notify(ins, pc);
    stamp(pc, step, 1);
    ++k;
    return true;
  }

  // With TC_TIMES: when instructions of the last TC_TIMES steps began and ended, ns, [TC_TIMES][instructions][2].
  TC_DEVICE void stamp(uint32_t pc, const Step& step, uint32_t end) const {
#ifdef TC_TIMES
    if (thread() == 0)
      at<uint64_t>(w.l.times)[(size_t(step.sequence % TC_TIMES) * w.l.instruction_count + pc) * 2 + end] = nanoseconds();
#endif
  }

  TC_DEVICE void run() {
    while (take_step()) {
      const uint32_t now = load(&w.b.steps[steps % 2].program);
      const DeviceStream s = w.stream(now);
      if (now != program && s.begin < s.end) {
        refill(s);
        program = now;
      }
      for (uint32_t pc = s.begin; pc < s.end; ++pc)
        if (!instruction(pc, s)) return;
    }
  }
};

// The kernel's body. `Bodies::run(kind, call)` is the engine's.
template <class Bodies>
TC_DEVICE void resident(const DeviceLaunch& l) {
  Block& b = *reinterpret_cast<Block*>(shared_memory());
  if (thread() == 0) {
    for (int i = 0; i < STAGES; ++i) {
      mbarrier_init(b.full + i, 1);
      mbarrier_init(b.empty + i, CONSUMER_WARPS);
    }
    mbarrier_init_fence();
    b.taken = b.begun = b.passed = b.leave = b.go = b.reported = 0;
    b.control = {};
    TC_ROLLED for (uint32_t p = 0; p < l.program_count; ++p)
      b.control.programs[p] = load(at<StepProgram>(l.programs) + p);
  }
  barrier<0, THREADS>();
  char* slots = shared_memory() + FRONT_BYTES + SCRATCH_BYTES;
  const Worker w{l, b, *at<Board>(load(at<uint64_t>(l.boards) + l.device)), l.devices > 1};
  if (thread() < CONSUMERS)
    Consumers<Bodies>{w, Ring{slots, b.full, b.empty, &b.leave, 2 * w.stall_ns(), {}}}.run();
  else if (lane() == 0)
    Loader{w, slots, {}}.run();
}

}  // namespace tc
