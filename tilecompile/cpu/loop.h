// The resident loop: threads that live as long as the engine and execute its tables.
//
// A thread carries one or more workers and polls their next instructions in turn; it never blocks on one. An
// instruction runs when its events have reached run * count; counters only grow and are never cleared. The sink
// (commit) publishes the next step's record, or none, and then the threads park until the host submits a request.
#pragma once
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
inline void relax() { __builtin_ia32_pause(); }
#elif defined(__aarch64__)
inline void relax() { asm volatile("yield"); }
#else
inline void relax() {}
#endif

enum State : uint32_t { IDLE = 0, RUNNING = 1, STALLED = 2, CLOSED = 3 };
enum Reason : uint32_t { NO_REASON = 0, STOP_ID = 1, MAX_NEW = 2, CONTEXT_FULL = 3, ABORTED = 4 };

constexpr uint32_t SPIN = 4096;          // polls without progress before a thread yields its core
constexpr uint32_t PARK_POLLS = 1 << 16;  // polls between requests before a thread parks
constexpr size_t HINT_BYTES = 2048;      // of the next weight run, fetched while a worker waits

struct alignas(64) Counter {
  std::atomic<uint32_t> value{0};
};

// One worker: its place in the current step.
struct Worker {
  uint32_t id = 0;
  uint32_t sequence = 0;  // step that it is in, or has finished
  uint32_t pc = 0, end = 0;
  uint32_t wait = 0;  // waits of the current instruction that are already met
  bool hinted = false;
  const char* pool = nullptr;
  std::vector<const Stream*> streams;  // by program
};

struct alignas(64) ThreadState {
  std::atomic<uint64_t> beat{0};  // grows by one before and after every instruction: odd inside a body
  std::thread thread;
  std::vector<Worker> workers;
  Scratch scratch{nullptr};
};

struct Engine {
  Launch launch;
  std::vector<Counter> counters;
  std::vector<ThreadState> threads;
  std::vector<uint32_t> runs;  // by program
  Step steps[2] = {};          // record of step n in steps[n % 2]
  alignas(64) std::atomic<uint32_t> sequence{0};
  alignas(64) std::atomic<uint32_t> state{IDLE};
  std::atomic<uint32_t> generated{0}, fed{0}, reason{NO_REASON}, parked{0}, abort{0};
  std::atomic<bool> host_waits{false};
  std::mutex mutex;
  std::condition_variable host;
  Request request = {};
  std::vector<int32_t> prompt, tokens;
  std::atomic<uint64_t> step_count{0};
  uint32_t launches = 0;
  uint32_t stall[5] = {};

  template <class E>
  const E* table(uint64_t address) const {
    return reinterpret_cast<const E*>(address);
  }
  template <class E>
  E* buffer(uint32_t index) const {
    return reinterpret_cast<E*>(table<uint64_t>(launch.buffers)[index]);
  }

  // Tells a waiting host that something changed.
  void signal() {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (host_waits.load(std::memory_order_relaxed)) {
      std::lock_guard<std::mutex> lock(mutex);
      host.notify_all();
    }
  }

  // Starts the next step with one token; the step before it is complete.
  void publish(uint32_t position, int32_t id) {
    const uint32_t n = sequence.load(std::memory_order_relaxed) + 1;
    Step& s = steps[n % 2];
    s.program = 0;
    s.run = ++runs[0];
    s.sequence = n;
    s.position = position;
    s.tokens = 1;
    s.context = position + 1;
    s.flags = request.logits != 0 || fed.load(std::memory_order_relaxed) + 1 >= request.count;
    s.ids[0] = id;
    buffer<int32_t>(launch.ids_buffer)[0] = id;
    buffer<int32_t>(launch.position_buffer)[0] = int32_t(position);
    sequence.store(n, std::memory_order_seq_cst);
    if (parked.load(std::memory_order_seq_cst)) sequence.notify_all();
  }

  void finish(Reason why) {
    reason.store(why, std::memory_order_relaxed);
    uint32_t running = RUNNING;
    state.compare_exchange_strong(running, IDLE, std::memory_order_seq_cst);
    signal();
  }

  // The sink: every other instruction of the step is done. Takes the sampled token and decides what comes next.
  void commit(const Step& s) {
    step_count.fetch_add(1, std::memory_order_relaxed);
    if (state.load(std::memory_order_relaxed) != RUNNING) return;
    const uint32_t done = fed.load(std::memory_order_relaxed) + (s.position < request.position + request.count);
    fed.store(done, std::memory_order_relaxed);
    if (request.logits) {
      float* out = reinterpret_cast<float*>(request.logits) + size_t(s.position - request.position) * launch.vocab;
      memcpy(out, table<float>(launch.logits), size_t(launch.vocab) * sizeof(float));
    }
    if (abort.load(std::memory_order_relaxed)) return finish(ABORTED);
    if (s.context < request.position + request.count)
      return publish(s.context, prompt[s.context - request.position]);
    if (request.max_new == 0) return finish(MAX_NEW);
    const int32_t id = buffer<int32_t>(launch.next_buffer)[0];
    const uint32_t count = generated.load(std::memory_order_relaxed);
    tokens[count] = id;
    generated.store(count + 1, std::memory_order_release);
    for (uint32_t i = 0; i < launch.stop_count; ++i)
      if (table<int32_t>(launch.stops)[i] == id) return finish(STOP_ID);
    if (count + 1 >= request.max_new) return finish(MAX_NEW);
    if (s.context >= launch.max_seq_len) return finish(CONTEXT_FULL);
    signal();
    publish(s.context, id);
  }

  // Whether all events of the worker's instruction have arrived; counts those that have.
  bool ready(Worker& w, const Instruction& ins, uint32_t run) {
    const Wait* waits = table<Wait>(launch.waits) + ins.wait_begin;
    for (; w.wait < ins.wait_count; ++w.wait) {
      const uint32_t have = counters[waits[w.wait].event].value.load(std::memory_order_relaxed);
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
      // A worker without instructions in a step isn't waited for, so the record may be overwritten while it is read.
      const Stream* stream = w.streams[steps[n % 2].program % launch.program_count];
      std::atomic_thread_fence(std::memory_order_acquire);
      if (sequence.load(std::memory_order_relaxed) != n) return true;
      w.sequence = n;
      w.pc = stream->begin;
      w.end = stream->end;
    }
    const Step& step = steps[w.sequence % 2];
    const Instruction* instructions = table<Instruction>(launch.instructions);
    bool moved = false;
    while (w.pc < w.end) {
      const Instruction& ins = instructions[w.pc];
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
      if (ins.kind == COMMIT_KIND) {
        commit(step);  // may start the next step: `step` is not read after this
        t.beat.store(beat + 2, std::memory_order_relaxed);
        return true;
      }
      BODIES[ins.kind](Call{&ins, &step, table<Operand>(launch.operands), table<TapeRun>(launch.tape),
                            reinterpret_cast<char* const*>(launch.buffers), w.pool, &t.scratch});
      const Notify* notifies = table<Notify>(launch.notifies) + ins.notify_begin;
      for (uint32_t i = 0; i < ins.notify_count; ++i)
        counters[notifies[i].event].value.fetch_add(1, std::memory_order_release);
      t.beat.store(beat + 2, std::memory_order_relaxed);
    }
    return moved;
  }

  uint64_t beats(bool& busy) const {
    uint64_t sum = 0;
    for (const ThreadState& t : threads) {
      const uint64_t b = t.beat.load(std::memory_order_relaxed);
      busy |= b & 1;
      sum += b;
    }
    return sum;
  }

  // First instruction of the thread that waits, with what it waits for.
  void report_stall(const ThreadState& t) {
    for (const Worker& w : t.workers) {
      if (w.pc == w.end) continue;
      const Instruction& ins = table<Instruction>(launch.instructions)[w.pc];
      if (w.wait >= ins.wait_count) continue;
      const Wait& wait = table<Wait>(launch.waits)[ins.wait_begin + w.wait];
      std::lock_guard<std::mutex> lock(mutex);
      if (state.load() != RUNNING) return;
      const uint32_t have = counters[wait.event].value.load(std::memory_order_relaxed);
      const uint32_t report[5] = {w.id, w.pc, wait.event, have, steps[w.sequence % 2].run * wait.count};
      memcpy(stall, report, sizeof stall);
      state.store(STALLED);
      host.notify_all();
      return;
    }
  }

  void loop(ThreadState& t) {
    uint32_t idle = 0;
    uint64_t seen = 0;
    uint32_t quiet_ms = 0;
    auto last = std::chrono::steady_clock::now();
    for (;;) {
      bool moved = false;
      for (Worker& w : t.workers) moved |= advance(t, w);
      if (moved) {
        idle = quiet_ms = 0;
        continue;
      }
      const uint32_t s = state.load(std::memory_order_relaxed);
      if (s == CLOSED) return;
      ++idle;
      if (s == RUNNING) {
        if (idle < SPIN) {
          relax();
          continue;
        }
        sched_yield();
        if (idle % SPIN) continue;
        // Time counts towards a stall only in small pieces, so that a stopped process (Ctrl-Z) doesn't look stalled.
        const auto now = std::chrono::steady_clock::now();
        const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(now - last).count();
        if (ms < 10) continue;
        last = now;
        bool busy = false;
        const uint64_t sum = beats(busy);
        if (busy || sum != seen) {
          seen = sum;
          quiet_ms = 0;
        } else if ((quiet_ms += uint32_t(ms < 50 ? ms : 50)) >= launch.stall_ms) {
          report_stall(t);
        }
      } else if (idle < PARK_POLLS && s == IDLE) {
        relax();
      } else {
        park(t);
        idle = quiet_ms = 0;
        last = std::chrono::steady_clock::now();
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

  void fill(Status& out) {
    out = Status{};
    out.steps = step_count.load(std::memory_order_relaxed);
    out.launches = launches;
    out.generated = generated.load(std::memory_order_acquire);
    out.state = state.load(std::memory_order_acquire);
    if (out.state != RUNNING) out.generated = generated.load(std::memory_order_acquire);
    out.fed = fed.load(std::memory_order_relaxed);
    out.reason = reason.load(std::memory_order_relaxed);
    out.parked = parked.load(std::memory_order_relaxed);
    out.stall_worker = stall[0];
    out.stall_instruction = stall[1];
    out.stall_event = stall[2];
    out.stall_have = stall[3];
    out.stall_want = stall[4];
  }

  void close() {
    state.store(CLOSED);
    sequence.fetch_add(1);  // wakes parked threads; there is no such step, and a closed loop doesn't run one
    sequence.notify_all();
    for (ThreadState& t : threads)
      if (t.thread.joinable()) t.thread.join();
    for (ThreadState& t : threads) std::free(t.scratch.base);
  }
};
