// State of a block: the front of its shared memory, its device's board, and waits that end with the kernel.
#pragma once

namespace tc {

constexpr uint32_t FETCHED = 8;          // waits and notifies of an instruction that are fetched ahead
constexpr uint32_t EAGER_POLLS = 65536;  // for the next step, before a block naps between polls
constexpr uint32_t LONGEST_NAP = 20000;  // ns
constexpr uint32_t RECENT = 2 * BODY_TOKENS;  // of the request's tokens the controller has that many at hand

// What the controller publishes to a device.
struct Board {
  Step steps[2];  // record of step n in steps[n % 2]
  alignas(64) uint32_t sequence;
  alignas(64) uint32_t leave;  // 1: a worker has stalled, all end
};
static_assert(sizeof(Board) == BOARD_BYTES && offsetof(Board, leave) == LEAVE_OFFSET);

// The controller's own state.
struct Control {
  uint32_t request, running, generated, drafted, extended, sequence, steps;
  uint32_t program_steps[MAX_PROGRAMS], proposed[MAX_DRAFTS], accepted[MAX_DRAFTS];  // as in Status
  uint32_t runs[MAX_PROGRAMS];  // of each program
  StepProgram programs[MAX_PROGRAMS];
  int32_t sampled[BODY_TOKENS];  // what the last step chose: once the next one has begun, the buffer of that is the next one's
  int32_t drafts[MAX_DRAFTS];   // of the round
  int32_t recent[RECENT];       // token n in recent[n % RECENT]
  uint32_t counted;             // tokens that `counts` has
  uint32_t ending;              // whether the step's end found that the request or the kernel is to end
  uint32_t paused, pauses;      // whether the request waits for a mask; how often one has
  Step step;  // the record that is published
  Asked now;  // the request as the step's end found it,
  Next next;  // and what follows the step
  DraftDepth depth;    // of a request that leaves it to the engine
  uint64_t committed;  // when the step before ended, ns
  Mailbox mail;
};

// The front of a block's shared memory.
struct Block {
  uint64_t full[STAGES], empty[STAGES];
  Instruction ins[3];         // instruction k of the block in ins[k % 3]
  DeviceWait waits[2][FETCHED];  // its first waits in waits[k % 2]
  DeviceNotify notifies[2][FETCHED];
  Step steps[2];    // the block's step n, from 1, in steps[n % 2]
  uint32_t taken;   // steps that the consumers have begun
  uint32_t begun;   // steps that the loader has begun; kept only if several programs are launched
  uint32_t passed;  // conditional runs that the loader has decided about
  uint32_t leave;   // the block ends
  uint32_t go;      // whether the consumers go on, between two of their barriers
  uint32_t reported;
  Control control;
};
static_assert(sizeof(Block) <= FRONT_BYTES);

template <class T>
TC_DEVICE T* at(uint64_t address) {
  return reinterpret_cast<T*>(address);
}
// Waits as long as a link would take.
TC_DEVICE void pause(uint32_t ns) {
  const uint64_t begin = nanoseconds();
  while (nanoseconds() - begin < ns) {
  }
}
TC_DEVICE uint32_t* counter_of(uint64_t address) { return at<uint32_t>(address & ~uint64_t(REMOTE)); }

// A block's view of the launch.
struct Worker {
  const DeviceLaunch& l;
  Block& b;
  Board& board;
  bool several;  // devices

  TC_DEVICE uint32_t number() const { return l.first_worker + block(); }
  TC_DEVICE bool controls() const { return number() == l.controller; }
  TC_DEVICE Board& board_of(uint32_t device) const { return *at<Board>(load(at<uint64_t>(l.boards) + device)); }
  TC_DEVICE DeviceStream stream(uint32_t program) const {
    return load(at<DeviceStream>(l.streams) + program * l.blocks + block());
  }
  TC_DEVICE bool leaving() const { return load_acquire_block(&b.leave); }
  TC_DEVICE void leave() const { store_release_block(&b.leave, 1); }
  TC_DEVICE uint64_t stall_ns() const { return uint64_t(l.stall_ms) * 1000000; }

  // Notes what the block waited for when the kernel ends itself, the first time; event NONE: its own loader.
  TC_DEVICE void report(uint32_t agent, uint32_t instruction, uint32_t event, uint32_t have, uint32_t want,
                        uint32_t sequence) const {
    if (!claim(&b.reported)) return;
    uint32_t* to = &at<Stall>(l.stalls)[number()].waits;
    const uint32_t values[] = {1, agent, instruction, event, have, want, sequence};
    for (int i = 0; i < 7; ++i) store_relaxed_sys(to + i, values[i]);
  }
  // Ends the kernel: all blocks of all devices.
  TC_DEVICE void stall() const {
    TC_ROLLED for (uint32_t d = 0; d < l.devices; ++d) store_relaxed_sys(&board_of(d).leave, 1);
    store_release_sys(&at<Status>(l.status)->state, STALLED);
    leave();
  }

  // The block leaves before that instruction: if no other does, a body has waited for weights in vain.
  TC_DEVICE void give_up(uint32_t instruction, uint32_t sequence) const {
    if (poll(&board.leave, several)) return;
    report(0, instruction, NONE, 0, 0, sequence);
    stall();
  }

  // Called at every poll within the block: whether it ends. Now and then polls whether all others do.
  TC_DEVICE bool ends(Patience& patience) const {
    if (patience.tick() && poll(&board.leave, several)) leave();
    return leaving();
  }
  // Waits until a count of the block's other agent has reached `want`. False if the kernel ends.
  TC_DEVICE bool await_agent(const uint32_t* count, uint32_t want, uint32_t instruction, uint32_t sequence) const {
    Patience patience;
    uint32_t have;
    while (int32_t((have = load_acquire_block(count)) - want) < 0) {
      if (ends(patience)) return false;
      if (!patience.since || !patience.over(stall_ns())) continue;
      report(0, instruction, NONE, have, want, sequence);
      stall();
    }
    return true;
  }
  // Waits until an event has arrived, `fence` to be called by the same thread. False if the kernel ends.
  TC_DEVICE bool await(uint64_t counter, uint32_t event, uint32_t want, uint32_t instruction, uint32_t sequence,
                       uint32_t agent) const {
    Patience patience;
    uint32_t have;
    while (int32_t((have = poll(counter_of(counter), counter & REMOTE)) - want) < 0) {
      if (!patience.tick()) continue;
      const bool late = patience.over(stall_ns());
      if (!late && !poll(&board.leave, several)) continue;
      report(agent, instruction, event, have, want, sequence);
      if (late) stall();
      leave();
      return false;
    }
    return true;
  }
};

}  // namespace tc
