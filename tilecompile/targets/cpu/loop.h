// The resident loop: threads that live as long as the engine and execute its tables.
//
// A thread carries one or more workers and polls their next instructions alternately; it never blocks on one. An
// instruction runs when its events have reached run * count; counters only grow and are never cleared. The sink
// (commit) publishes the next step's record, or none, and then the threads park until the host submits a request.
#pragma once

#ifndef TC_CHAOS
#define TC_CHAOS(where)  // nothing in an engine: tests build kernels that wait here for random times
#endif

struct Engine {
  Launch launch;
  Counters counters;
  std::vector<ThreadState> threads;
  std::vector<uint32_t> runs;  // by program
  Step steps[2] = {};          // record of step n in steps[n % 2]
  std::atomic<uint32_t> programs[2] = {};  // its program, which workers that the step doesn't wait for read too
  alignas(64) std::atomic<uint32_t> sequence{0};
  alignas(64) std::atomic<uint32_t> state{IDLE};
  std::atomic<uint32_t> generated{0}, fed{0}, reason{NO_REASON}, parked{0}, abort{0};
  std::atomic<bool> host_waits{false};
  std::atomic<uint32_t> host_has{0};  // tokens that it has: it waits for more, or for the request's end
  std::mutex mutex;
  std::condition_variable host;
  Request request = {};
  std::vector<int32_t> prompt, tokens;
  int32_t drafts[MAX_DRAFTS] = {};  // of the round
  uint32_t drafted = 0;
  Sampler sampler;
  Next pending = {};  // the step that follows once a PAUSED request has its mask
  DraftDepth depth;  // of a request that leaves it to the engine
  std::chrono::steady_clock::time_point committed;  // when the step before ended
  std::atomic<uint32_t> extended{0};
  std::atomic<uint32_t> program_steps[MAX_PROGRAMS] = {}, proposed[MAX_DRAFTS] = {}, accepted[MAX_DRAFTS] = {};
  std::atomic<uint64_t> step_count{0};
  uint32_t launches = 0;
  uint32_t stall[5] = {};
  TC_PROFILED(Profile profile;)

  template <class E>
  const E* table(uint64_t address) const {
    return reinterpret_cast<const E*>(address);
  }
  template <class E>
  E* buffer(uint32_t index) const {
    return reinterpret_cast<E*>(table<uint64_t>(launch.buffers)[index]);
  }

  // Notifies a waiting host that the request has ended, or that there are more tokens than it has:
  // to wake it takes time from the step, and maybe a core.
  void signal(bool ended) {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (host_waits.load(std::memory_order_acquire) &&
        (ended || generated.load(std::memory_order_relaxed) > host_has.load(std::memory_order_relaxed))) {
      std::lock_guard<std::mutex> lock(mutex);
      host.notify_all();
    }
  }

  // The request, as the rules see it.
  Asked asked() const {
    return {request.position,
            request.count,
            request.max_new,
            request.logits != 0,
            request.drafts == AUTO_DRAFTS ? depth.depth() : request.drafts,
            generated.load(std::memory_order_relaxed),
            drafted,
            abort.load(std::memory_order_relaxed)};
  }
  const StepProgram& program(uint32_t number) const { return table<StepProgram>(launch.programs)[number]; }

  // The id at a position: of the prompt, of the tokens, or of the round's drafts.
  int32_t id_at(uint32_t position) const {
    const uint32_t i = position - request.position;
    if (i < request.count) return prompt[i];
    const uint32_t token = i - request.count, known = generated.load(std::memory_order_relaxed);
    return token < known ? tokens[token] : drafts[token - known];
  }
  Limits limits() const {
    return {table<StepProgram>(launch.programs), launch.first_program, launch.vocab, launch.max_seq_len,
            request.sampling ? sampler.record.stop_count : launch.stop_count};
  }
  int32_t stop(uint32_t i) const { return request.sampling ? sampler.record.stops[i] : table<int32_t>(launch.stops)[i]; }

  // Starts the next step; the step before it is complete.
  void publish(const Next& next) {
    const uint32_t n = sequence.load(std::memory_order_relaxed) + 1;
    // Who sees this step's program also sees the number of the step before.
    std::atomic_thread_fence(std::memory_order_release);
    programs[n % 2].store(next.program, std::memory_order_relaxed);
    TC_CHAOS("within a step's record")
    Step& s = steps[n % 2];
    describe(s, next, ++runs[next.program], n);
    const uint32_t first = next.position + shift_of(program(next.program));
    int32_t* ids = buffer<int32_t>(launch.ids_buffer);
    for (uint32_t i = 0; i < next.tokens; ++i) ids[i] = id_at(first + i);
    buffer<int32_t>(launch.position_buffer)[0] = int32_t(next.position);
    sampler.count_to(first, tokens.data(), generated.load(std::memory_order_relaxed));
    TC_CHAOS("before a step begins")
    TC_PROFILED(profile.publish(n, s);)
    sequence.store(n, std::memory_order_seq_cst);
    TC_CHAOS("before parked threads wake")
    if (parked.load(std::memory_order_seq_cst)) sequence.notify_all();
  }

  void finish(uint32_t why) {
    reason.store(why, std::memory_order_relaxed);
    TC_CHAOS("before a request ends")
    uint32_t running = RUNNING;
    state.compare_exchange_strong(running, IDLE, std::memory_order_seq_cst);
    signal(true);
  }

  static void count(std::atomic<uint32_t>& of) {
    of.store(of.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }

  // Notes how much of the prompt has been fed after a step, and hands on its logits if they are asked for.
  void feed(const StepProgram& program, const Asked& now, const Step& s) {
    const uint32_t before = fed_of(now, s.position), done = fed_of(now, s.context);
    fed.store(done, std::memory_order_relaxed);
    if (!request.logits || before >= done) return;
    float* out = reinterpret_cast<float*>(request.logits) + size_t(before) * launch.vocab;
    memcpy(out, table<float>(program.logits), size_t(done - before) * launch.vocab * sizeof(float));
  }

  // Notes how long a step took, and what became of the drafts that it verified.
  void learn(const Step& s, const Asked& now, const Next& next) {
    if (request.drafts != AUTO_DRAFTS) return;
    const auto before = std::exchange(committed, std::chrono::steady_clock::now());
    const double ns = double(std::chrono::nanoseconds(committed - before).count());
    depth.ran(s, program(s.program), now.drafted, next.taken ? next.taken - 1 : 0, ns);
  }

  // The sink: every other instruction of the step is done. Takes what was sampled, and starts what comes next.
  void commit(const Step& s) {
    step_count.fetch_add(1, std::memory_order_relaxed);
    if (state.load(std::memory_order_relaxed) != RUNNING) return;
    const Asked now = asked();
    const StepProgram& done = program(s.program);
    if (!done.drafts) feed(done, now, s);
    const int32_t* sampled = table<int32_t>(done.next);
    const Next next = decide(
        s, now, limits(), [&](uint32_t row) { return sampled[row]; }, [&](uint32_t i) { return drafts[i]; },
        [&](uint32_t i) { return stop(i); });
    count(program_steps[s.program]);
    if (extends(limits(), s, extended.load(std::memory_order_relaxed))) extended.store(s.context, std::memory_order_relaxed);
    learn(s, now, next);
    if (next.drafted > drafted) {
      const int32_t* script = table<int32_t>(request.script);
      drafts[drafted] = draft_of(limits(), script ? script[now.generated + drafted] : sampled[next.row]);
    }
    drafted = next.drafted;
    if (next.taken) {
      for (uint32_t i = 0; i < now.drafted; ++i) {
        count(proposed[i]);
        if (i + 1 < next.taken) count(accepted[i]);
      }
      for (uint32_t i = 0; i < next.taken; ++i) take(done, next.row + i, now.generated + i);
      generated.store(now.generated + next.taken, std::memory_order_release);
    }
    if (next.reason != NO_REASON) return finish(next.reason);
    if (next.taken && sampler.masks) return pause(next);
    if (next.taken) signal(false);
    publish(next);
  }

  // Takes what a step sampled in a row of its logits as a token, with its log-probabilities if they are asked for.
  void take(const StepProgram& done, uint32_t row, uint32_t token) {
    const int32_t id = tokens[token] = table<int32_t>(done.next)[row];
    if (!request.logprobs) return;
    int32_t* out = reinterpret_cast<int32_t*>(request.logprobs) + size_t(token) * (1 + 2 * request.logprob_count);
    log_probabilities(table<float>(done.logits) + size_t(row) * launch.vocab, launch.vocab, id, request.logprob_count, out);
  }

  // Leaves the next step to the host, which says first which ids are allowed in it.
  void pause(const Next& next) {
    bool paused = false;
    {
      std::lock_guard<std::mutex> lock(mutex);
      pending = next;
      uint32_t running = RUNNING;
      paused = !abort.load() && state.compare_exchange_strong(running, PAUSED);
      if (paused) host.notify_all();
    }
    if (!paused) finish(ABORTED);
  }

  // Whether all events of the worker's instruction have arrived; counts those that have.
  bool ready(Worker& w, const Instruction& ins, uint32_t run) {
    const Wait* waits = table<Wait>(launch.waits) + ins.wait_begin;
    for (; w.wait < ins.wait_count; ++w.wait) {
      const uint32_t have = counters.value(waits[w.wait].event);
      if (int32_t(have - run * waits[w.wait].count) < 0) return false;
    }
    if (ins.wait_count) std::atomic_thread_fence(std::memory_order_acquire);
    return true;
  }

  // While a worker waits, the start of its next data-independent weight run is fetched.
  void hint(Worker& w, const Instruction& ins) {
    w.hinted = true;
    if (ins.prefetch == NONE) return;
    const TapeRun& run = table<TapeRun>(launch.tape)[ins.prefetch];
    for (size_t b = 0; b < HINT_BYTES && b < run.bytes; b += 64) prefetch(w.pool + run.offset + b);
  }

  // Runs what the worker can run without waiting; false if it could do nothing.
  bool advance(ThreadState& t, Worker& w) {
    if (w.pc == w.end) {
      const uint32_t n = sequence.load(std::memory_order_acquire);
      if (n == w.sequence || state.load(std::memory_order_relaxed) == CLOSED) return false;
      // A worker without instructions in a step isn't waited for, so two steps may have begun meanwhile: poll again.
      TC_CHAOS("before a worker takes up a step")
      const Stream* stream = w.streams[programs[n % 2].load(std::memory_order_relaxed)];
      std::atomic_thread_fence(std::memory_order_acquire);
      if (sequence.load(std::memory_order_relaxed) != n) return true;
      w.sequence = n;
      w.pc = stream->begin;
      w.end = stream->end;
    }
    const Step& step = steps[w.sequence % 2];
    const Instruction* instructions = table<Instruction>(launch.instructions);
    bool moved = false;
    TC_PROFILED(uint64_t* stamp = profile.row(w.sequence) + 2 + 2 * w.pc; uint64_t end = 0;)
    while (w.pc < w.end) {
      const Instruction& ins = instructions[w.pc];
      TC_CHAOS("before waits")
      if (!ready(w, ins, step.run)) {
        if (!w.hinted) hint(w, ins);
        return moved;
      }
      const uint64_t beat = t.beat.load(std::memory_order_relaxed);
      t.beat.store(beat + 1, std::memory_order_relaxed);
      moved = true;
      w.wait = 0;
      w.hinted = false;
      ++w.pc;
      TC_PROFILED(*stamp++ = end ? end : ticks();)
      TC_CHAOS("between waits and body")
      if (ins.kind == COMMIT_KIND) {
        commit(step);  // may start the next step: `step` is not read after this
        TC_PROFILED(*stamp = ticks();)
        TC_CHAOS("after a commit")
        t.beat.store(beat + 2, std::memory_order_relaxed);
        return true;
      }
      BODIES[ins.kind](Call{&ins, &step, table<Operand>(launch.operands), table<TapeRun>(launch.tape),
                            reinterpret_cast<char* const*>(launch.buffers), w.pool, &t.scratch});
      const Notify* notifies = table<Notify>(launch.notifies) + ins.notify_begin;
      for (uint32_t i = 0; i < ins.notify_count; ++i) {
        TC_CHAOS("before a notify")
        counters.notify(notifies[i].event, t.id);
      }
      TC_PROFILED(*stamp++ = end = ticks();)
      TC_CHAOS("after notifies")
      t.beat.store(beat + 2, std::memory_order_relaxed);
    }
    return moved;
  }

  // Grows with every step and every instruction.
  uint64_t beats(bool& busy) const {
    uint64_t sum = sequence.load(std::memory_order_relaxed);
    for (const ThreadState& t : threads) {
      const uint64_t b = t.beat.load(std::memory_order_relaxed);
      busy |= b & 1;
      sum += b;
    }
    return sum;
  }

  // A round over the thread's workers found nothing to run: notes what the first of them, in the operators' order,
  // waits for.
  void poll(ThreadState& t) const {
    uint32_t first = NONE;
    for (const Worker& w : t.workers)
      if (w.pc != w.end) first = std::min(first, table<Instruction>(launch.instructions)[w.pc].op);
    t.waiting.store(first, std::memory_order_relaxed);
    t.polls.store(t.polls.load(std::memory_order_relaxed) + 1, std::memory_order_release);
  }

  // Whether the kernel stands still for good, as a thread sees it that waits; called at every poll.
  //
  // No thread is in a body, none has run an instruction since `q` began, and every thread has polled all its workers
  // twice since: then none can move. So a thread that gets no time from the system never makes a stall; the time that
  // must pass is for people, and counts in small pieces, so that a stopped process (Ctrl-Z) doesn't look stalled.
  bool still(Quiet& q) const {
    const auto now = std::chrono::steady_clock::now();
    const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(now - q.last).count();
    if (ms < 10) return false;
    q.last = now;
    bool busy = false;
    const uint64_t sum = beats(busy);
    if (busy || sum != q.beats || q.polls.empty()) {
      q.beats = sum;
      q.ms = 0;
      q.polls.clear();
      for (const ThreadState& t : threads) q.polls.push_back(t.polls.load(std::memory_order_relaxed));
      return false;
    }
    if ((q.ms += uint32_t(ms < 50 ? ms : 50)) < launch.stall_ms) return false;
    if (q.ms / 60 >= launch.stall_ms) return true;  // a thread doesn't even poll: lost, and not for want of time
    for (size_t i = 0; i < threads.size(); ++i)
      if (threads[i].polls.load(std::memory_order_acquire) - q.polls[i] < 2) return false;
    return true;
  }

  // Reports the thread's waiting instruction that is first in the operators' order, if no other thread has an earlier
  // one: what comes later waits for it. Without any, the step has ended without its sink.
  void report_stall(const ThreadState& t, const Quiet& q) {
    const uint32_t mine = t.waiting.load(std::memory_order_relaxed);
    for (const ThreadState& other : threads)
      if (other.waiting.load(std::memory_order_relaxed) < mine) return;
    std::lock_guard<std::mutex> lock(mutex);
    bool busy = false;
    if (state.load() != RUNNING || beats(busy) != q.beats || busy) return;  // the host has just started a step
    std::fill_n(stall, 5, NONE);
    for (const Worker& w : t.workers) {
      if (w.pc == w.end) continue;
      const Instruction& ins = table<Instruction>(launch.instructions)[w.pc];
      if (ins.op != mine || w.wait >= ins.wait_count) continue;
      const Wait& wait = table<Wait>(launch.waits)[ins.wait_begin + w.wait];
      const uint32_t have = counters.value(wait.event);
      const uint32_t report[5] = {w.id, w.pc, wait.event, have, steps[w.sequence % 2].run * wait.count};
      memcpy(stall, report, sizeof stall);
      break;
    }
    state.store(STALLED);
    host.notify_all();
  }

  void loop(ThreadState& t) {
    uint32_t idle = 0;
    Quiet quiet;
    for (;;) {
      bool moved = false;
      for (Worker& w : t.workers) moved |= advance(t, w);
      if (moved) {
        idle = 0;
        continue;
      }
      const uint32_t s = state.load(std::memory_order_relaxed);
      if (s == CLOSED) return;
      if (s != RUNNING) quiet.polls.clear();
      ++idle;
      if (s == STALLED || ((s == IDLE || s == PAUSED) && idle >= PARK_POLLS)) {
        park(t);
        idle = 0;
      } else if (idle < SPIN) {
        relax();
      } else {
        if (s == RUNNING) {
          poll(t);
          if (still(quiet)) report_stall(t, quiet);
        }
        sched_yield();  // between requests too: the host, which was woken at the end of one, may have no other core
      }
    }
  }

  // Sleeps until a step is published or the engine closes.
  void park(const ThreadState& t) {
    const uint32_t n = t.workers.front().sequence;
    for (const Worker& w : t.workers)
      if (w.sequence != n || (w.pc != w.end && state.load() != STALLED)) return;
    parked.fetch_add(1, std::memory_order_seq_cst);
    if (state.load(std::memory_order_seq_cst) != CLOSED) {
      const uint32_t now = sequence.load(std::memory_order_seq_cst);
      if (now == n) sequence.wait(n, std::memory_order_seq_cst);
    }
    parked.fetch_sub(1, std::memory_order_seq_cst);
  }
};
