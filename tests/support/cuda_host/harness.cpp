// Runs the loop of the GPU target, its very text, on the shim: blocks of all devices, a host that submits requests.
//
// The test's bodies read and write the regions of their instruction, and take the weights of its runs from the ring.
// What they write is a hash of all that they read, so that the memory after the last step, and every token, must be what
// the same instructions give when they are executed one after the other.
#include "program.h"  // c_header, shim.cuh, ring.cuh, call.cuh and the rest

extern "C" {
struct Program {
  const Region* regions;
  const TapeRun* tape;
  const Instruction* instructions;
  const uint64_t* places;      // of buffers
  const Buffer* buffers;
  const uint64_t* pools;       // by device
  const uint32_t* device_of;   // by instruction
  const uint32_t* order;       // instructions of each program, in an order that it allows, the sink last
  const uint32_t* order_begin; // of each program
  uint32_t* memory;            // all arenas
  uint32_t* twin;              // the same, for the reference
  uint64_t memory_words;
  const DeviceLaunch* launches;
  uint32_t devices, experts, vocab;
};
struct Ask {
  int32_t ids[8];
  uint32_t count, position, max_new, drafts, abort_at, stop_at;  // tokens after which to abort, to stop; NONE: never
  uint32_t masks, pauses;  // 1: it pauses after each token; how often it did
  float* logits;
  const int32_t* script;
};
struct Answer {
  uint32_t state, reason, fed, generated, steps, accepted;
  int32_t tokens[64];
};
}

static const Program* program;

static uint32_t mix(uint32_t h, uint32_t v) {
  h = (h ^ v) * 0x9E3779B1u;
  return h ^ (h >> 15);
}

// One instruction over some memory. `A` reads, writes, and gives the weights.
template <class A>
static void task(A& a, const Instruction& ins, const Step& step, int warp, int warps) {
  const Region* regions = program->regions + ins.region_begin;
  const auto words = [&](const Region& r, auto&& f) {
    const Buffer& b = program->buffers[r.buffer];
    for (uint32_t row = r.row_begin; row < r.row_end; ++row)
      for (uint32_t col = r.col_begin; col < r.col_end; ++col)
        f(program->places[r.buffer] + 4 * (uint64_t(row) * b.cols + col));
  };
  uint32_t h = mix(mix(mix(1, ins.op), step.position), step.tokens);
  for (int i = 0; i < ins.region_count; ++i)
    if (regions[i].mode == READ) words(regions[i], [&](uint64_t p) { h = mix(h, a.read(p)); });
  for (int i = 0; i < ins.tape_count; ++i) {
    const TapeRun& run = program->tape[ins.tape_begin + i];
    int32_t expert = 0;
    if (run.slot >= 0 && (expert = int32_t(a.read(a.operand(0) + 4 * run.slot))) < 0) continue;
    a.weights(run, expert, [&](uint32_t w) { h = mix(h, w); });
  }
  a.meet();
  uint32_t element = 0;
  for (int i = 0; i < ins.region_count; ++i)
    if (regions[i].mode == WRITE)
      words(regions[i], [&](uint64_t p) {
        uint32_t v = mix(h, element);
        if (ins.kind == DISPATCH) v = v % (program->experts + 1) - 1;
        if (ins.kind == NEXT) v %= program->vocab;
        if (int(element++ % warps) == warp) a.write(p, v);
      });
}

// In the kernel.
struct InKernel {
  const tc::Call& c;
  uint32_t read(uint64_t p) { return tc::load(reinterpret_cast<const uint32_t*>(p)); }
  void write(uint64_t p, uint32_t v) { tc::store(reinterpret_cast<uint32_t*>(p), v); }
  uint64_t operand(int i) { return reinterpret_cast<uint64_t>(c.arg<char>(i)); }
  void meet() { tc::body_barrier(); }
  template <class F>
  void weights(const TapeRun& run, int32_t, F&& f) {
    for (uint64_t done = 0; done < run.bytes; done += tc::SLOT) {
      const char* w = c.ring.wait();
      const bool there = !tc::load_acquire_block(c.ring.leave);  // else any bytes may be there
      for (uint64_t i = done; there && i < run.bytes && i < done + tc::SLOT; i += 4)
        f(tc::load(reinterpret_cast<const uint32_t*>(w + i - done)));
      c.ring.release();
    }
  }
};

struct Bodies {
  static void run(uint32_t, const tc::Call& c) {
    Instruction ins = tc::load(c.ins);
    ins.flags &= 0xFFFF;
    InKernel a{c};
    task(a, ins, tc::load(c.step), tc::thread(), tc::CONSUMERS);
  }
};

// In the reference: the twin of the memory.
struct InTwin {
  const Instruction& ins;
  uint32_t& at(uint64_t p) { return program->twin[(p - reinterpret_cast<uint64_t>(program->memory)) / 4]; }
  uint32_t read(uint64_t p) { return at(p); }
  void write(uint64_t p, uint32_t v) { at(p) = v; }
  uint64_t operand(int i) { return reinterpret_cast<const uint64_t*>(program->launches[0].operands)[ins.operand_begin + i]; }
  void meet() {}
  template <class F>
  void weights(const TapeRun& run, int32_t expert, F&& f) {
    const uint64_t pool = program->pools[program->device_of[&ins - program->instructions]];
    const auto* w = reinterpret_cast<const uint32_t*>(pool + run.offset + run.stride * uint64_t(expert));
    for (uint64_t i = 0; i < run.bytes / 4; ++i) f(w[i]);
  }
};

// What a request gives, after those before it, by the rules of all targets; `answer` holds how far the kernel came.
static std::string check(const Ask& ask, const Answer& answer) {
  const DeviceLaunch& l = program->launches[0];
  const auto* programs = reinterpret_cast<const StepProgram*>(l.programs);
  const Limits limits = {programs, l.first_program, l.vocab, l.max_seq_len, l.stop_count};
  Asked asked = {ask.position, ask.count, ask.max_new, ask.logits != nullptr, ask.drafts, 0, 0, 0};
  std::vector<int32_t> tokens, drafts;
  const auto in = [&](uint64_t at) -> uint32_t& { return InTwin{program->instructions[0]}.at(at); };
  const auto id_at = [&](uint32_t i) {
    if (i < ask.count) return ask.ids[i];
    return i - ask.count < tokens.size() ? tokens[i - ask.count] : drafts.at(i - ask.count - tokens.size());
  };
  uint32_t fed = 0, steps = 0;
  Next next = first_step(asked, limits);
  while (next.reason == NO_REASON) {
    Step s = {};
    describe(s, next, 0, 0);
    const StepProgram& p = programs[s.program];
    for (uint32_t i = 0; i < s.tokens; ++i) in(l.ids + 4 * i) = id_at(s.position - ask.position + p.drafts + i);
    in(l.position) = s.position;
    for (uint32_t i = program->order_begin[s.program]; i < program->order_begin[s.program + 1]; ++i) {
      const Instruction& ins = program->instructions[program->order[i]];
      if (ins.kind == COMMIT_KIND || ((ins.flags & PREDICATED) && !s.flags)) continue;
      InTwin a{ins};
      task(a, ins, s, 0, 1);
    }
    for (uint32_t row = 0; !p.drafts && row < s.tokens && s.position + row < ask.position + ask.count; ++row, ++fed)
      for (uint32_t v = 0; ask.logits && v < l.vocab; ++v)
        if (memcmp(&ask.logits[fed * l.vocab + v], &in(p.logits + 4 * (row * l.vocab + v)), 4)) return "other logits";
    const auto sampled = [&](uint32_t row) { return int32_t(in(p.next + 4 * row)); };
    const bool last = answer.reason == ABORTED && ++steps == answer.steps;
    const bool in_pause = last && ask.masks && answer.generated > tokens.size();  // after it had taken the step's token
    asked.aborted = last && !in_pause;
    next = decide(
        s, asked, limits, sampled, [&](uint32_t i) { return drafts.at(i); },
        [&](uint32_t i) { return reinterpret_cast<const int32_t*>(l.stops)[i]; });
    for (uint32_t i = 0; i < next.taken; ++i) tokens.push_back(sampled(next.row + i));
    if (next.drafted > drafts.size())
      drafts.push_back(draft_of(limits, ask.script ? ask.script[asked.generated + drafts.size()] : sampled(next.row)));
    drafts.resize(next.drafted);
    asked.generated = uint32_t(tokens.size());
    asked.drafted = next.drafted;
    if (in_pause) next.reason = ABORTED;
  }
  if (next.reason != answer.reason || fed != answer.fed || tokens.size() != answer.generated)
    return "ended for " + std::to_string(answer.reason) + " after " + std::to_string(answer.fed) + " and " +
           std::to_string(answer.generated) + ", want " + std::to_string(next.reason) + ", " + std::to_string(fed) + ", " +
           std::to_string(tokens.size());
  if (!std::equal(tokens.begin(), tokens.end(), answer.tokens)) return "other tokens";
  return "";
}

// The host: submits the requests one after the other, then stops the kernel.
static void host_thread(Ask* asks, Answer* answers, uint32_t count) {
  const DeviceLaunch& l = program->launches[0];
  Mailbox& mail = *reinterpret_cast<Mailbox*>(l.mailbox);
  const Status& status = *reinterpret_cast<const Status*>(l.status);
  bool stopped = false;
  uint32_t allowed = 0;
  for (uint32_t n = 1; n <= count && !stopped; ++n) {
    Ask& ask = asks[n - 1];
    Answer& answer = answers[n - 1];
    tc::store(&mail.ids, reinterpret_cast<uint64_t>(ask.ids));
    tc::store(&mail.logits, reinterpret_cast<uint64_t>(ask.logits));
    tc::store(&mail.count, ask.count);
    tc::store(&mail.position, ask.position);
    tc::store(&mail.max_new, ask.max_new);
    tc::store(&mail.drafts, ask.drafts);
    tc::store(&mail.masks, ask.masks);
    tc::store(&mail.script, reinterpret_cast<uint64_t>(ask.script));
    tc::store_release_sys(&mail.submitted, n);
    for (;;) {
      const bool mine = tc::load_acquire_sys(&status.request) == n;
      answer.state = tc::load_acquire_sys(&status.state);
      const uint32_t pauses = tc::load_acquire_sys(&status.pauses);
      if (mine && answer.state == PAUSED && pauses != allowed) {
        ++ask.pauses;
        tc::store_release_sys(&mail.allowed, allowed = pauses);
      }
      answer.generated = tc::load_acquire_sys(&status.generated);
      if (answer.state == STALLED) return;
      if (mine && answer.state == IDLE) break;
      if (mine && answer.generated >= ask.abort_at) tc::store_relaxed_sys(&mail.abort, n);
      if (mine && answer.generated >= ask.stop_at) {
        tc::store_relaxed_sys(&mail.stop, 1);
        stopped = true;
      }
    }
    answer.generated = tc::load_acquire_sys(&status.generated);
    answer.reason = tc::load(&status.reason);
    answer.fed = tc::load(&status.fed);
    answer.steps = answer.accepted = 0;
    for (const uint32_t& n : status.program_steps) answer.steps += tc::load(&n);
    for (const uint32_t& n : status.accepted) answer.accepted += tc::load(&n);
    for (uint32_t i = 0; i < answer.generated; ++i) answer.tokens[i] = tc::load(reinterpret_cast<int32_t*>(l.tokens) + i);
  }
  tc::store_release_sys(&mail.stop, 1);
}

extern "C" void tc_bug(int number) { host::bug = number; }

extern "C" int tc_try(const Program* p, Ask* asks, Answer* answers, uint32_t requests, uint64_t seed, uint64_t* about,
                      char* message) {
  host::Simulation s;
  host::simulation = &s;
  program = p;
  s.random = seed * 0x9E3779B97F4A7C15u + 1;
  for (int i = 0; i < 8; ++i) s.draw(2);
  memcpy(p->twin, p->memory, p->memory_words * 4);
  s.shared_bytes = tc::SHARED_BYTES;
  int blocks = 0;
  for (uint32_t d = 0; d < p->devices; ++d)
    for (uint32_t b = 0; b < p->launches[d].blocks; ++b, ++blocks) {
      s.shared.push_back(static_cast<char*>(aligned_alloc(1024, tc::SHARED_BYTES)));
      memset(s.shared.back(), 0xA5, tc::SHARED_BYTES);
      for (int w = 0; w < tc::THREADS; ++w)
        s.add([p, d] { tc::resident<Bodies>(p->launches[d]); }, int(d), blocks, b, w);
    }
  const int warps = int(s.fibers.size());
  s.add(
      [&] {
        host_thread(asks, answers, requests);
        for (int i = 0; i < warps; ++i)
          while (!s.fibers[i]->done) s.change();
        s.leave();
      },
      0, blocks, 0, 0);
  if (s.draw(2))
    for (auto& f : s.fibers) f->speed = 1 + s.draw(16);
  s.late_odds = std::vector<uint32_t>{4, 40, 400}[s.draw(3)];
  s.copy_odds = std::vector<uint32_t>{8, 24, 400, 2000}[s.draw(4)];
  s.run();
  for (char* m : s.shared) free(m);
  host::simulation = nullptr;
  about[0] = s.operations, about[1] = s.hints, about[2] = s.all_copies;
  std::string error = s.error;
  if (error.empty() && reinterpret_cast<const Status*>(p->launches[0].status)->state == STALLED) error = "stalled";
  for (uint32_t n = 0; n < requests && error.empty() && answers[n].reason; ++n) error = check(asks[n], answers[n]);
  if (error.empty() && memcmp(p->twin, p->memory, p->memory_words * 4)) error = "other memory";
  snprintf(message, 256, "%s", error.c_str());
  return !error.empty();
}
