// The rules of a request: the step that it begins with, what follows a step, and why it ends.
//
// Pure functions of numbers, the same for every target. The loops that include them do the rest: they read and write
// memory, in their own order. `interpret/commit_rules.py` says the same in Python, and a test compares the two.
//
// The ids of a request are those of its prompt, then its tokens, then the drafts of the current round. A step takes the
// ids at its positions, one of an MTP layer (`StepProgram.drafts`) those one further.
#pragma once

#ifdef TC_DEVICE
#define TC_RULE TC_DEVICE
#else
#define TC_RULE inline
#endif

// A request: what it asks for, as `Request` has it, and how far it is.
struct Asked {
  uint32_t position, count, max_new;
  uint32_t every_logit;  // 1: it asks for the logits after each id of the prompt
  uint32_t drafts;       // most that a round drafts
  uint32_t generated;    // tokens so far
  uint32_t drafted;      // drafts of the round so far
  uint32_t aborted;      // 1: it is to end
};

// What all requests of a launch have in common.
struct Limits {
  const StepProgram* programs;
  uint32_t first_program, vocab, max_seq_len, stop_count;
};

// What follows: a step, or the end of the request.
struct Next {
  uint32_t reason;   // Reason; NO_REASON: the step that the next four fields describe
  uint32_t program, position, tokens, flags;  // as in Step
  uint32_t row;      // of the sampled ids, the first that the request takes, or the new draft's
  uint32_t taken;    // how many it takes: as many tokens are new
  uint32_t drafted;  // drafts of the round, with the one of this step if it is one more than before
};

// Ids of the prompt that have been fed once `context` positions are valid.
TC_RULE uint32_t fed_of(const Asked& asked, uint32_t context) {
  const uint32_t end = asked.position + asked.count;
  return (context < end ? context : end) - asked.position;
}

// How far behind its positions a program's ids are.
TC_RULE uint32_t shift_of(const StepProgram& program) { return program.drafts; }

// A step of `tokens` tokens from a position on.
TC_RULE Next step_at(uint32_t program, uint32_t position, uint32_t tokens, bool logits) {
  return {NO_REASON, program, position, tokens, logits ? NEEDS_LOGITS : 0, 0, 0, 0};
}

// A step that takes as many of the prompt's ids from a position on as its program can; `from` says which that is.
TC_RULE Next feed_at(const Asked& asked, const Limits& limits, const StepProgram& from, uint32_t position) {
  const uint32_t left = asked.position + asked.count - position;
  const uint32_t program = left == 1 ? from.on_single : asked.every_logit ? from.on_every : from.on_prompt;
  const uint32_t most = limits.programs[program].tokens, tokens = left < most ? left : most;
  return step_at(program, position, tokens, asked.every_logit || tokens == left);  // what follows is up to the model
}

// The step that a request begins with.
TC_RULE Next first_step(const Asked& asked, const Limits& limits) {
  return feed_at(asked, limits, limits.programs[limits.first_program], asked.position);
}

// Drafts of a round after `generated` tokens, the last of which is at `newest`: one token more is verified than drafted.
TC_RULE uint32_t depth_of(const Asked& asked, const Limits& limits, const StepProgram& from, uint32_t generated,
                          uint32_t newest) {
  if (from.on_verify == NONE) return 0;
  uint32_t depth = limits.programs[from.on_verify].tokens - 1;
  if (asked.drafts < depth) depth = asked.drafts;
  if (asked.max_new - generated - 1 < depth) depth = asked.max_new - generated - 1;
  if (limits.max_seq_len - newest - 1 < depth) depth = limits.max_seq_len - newest - 1;
  return depth;
}

// What follows a step of an MTP layer, which sampled one more draft.
TC_RULE Next after_draft(const Step& step, const Asked& asked, const Limits& limits, const StepProgram& program) {
  const uint32_t newest = asked.position + asked.count + asked.generated - 1, drafted = asked.drafted + 1;
  Next next = drafted < depth_of(asked, limits, program, asked.generated, newest)
                  ? step_at(program.on_draft, step.context, 1, true)
                  : step_at(program.on_verify, newest, 1 + drafted, true);
  next.drafted = drafted;
  return next;
}

// Why a request ends where something else than an id was sampled.
TC_RULE Reason reason_of(int32_t id) {
  return id == NOT_FINITE_ID ? NOT_FINITE : id == NOTHING_ALLOWED_ID ? NOTHING_ALLOWED : BAD_ID;
}

// The draft that a sampled id is: bodies take ids on trust, and any id will do where the draft layer's logits are no good.
TC_RULE int32_t draft_of(const Limits& limits, int32_t id) { return uint32_t(id) < limits.vocab ? id : 0; }

// What follows a step. `sampled(row)` is the id that the step chose in a row of its logits, `draft(i)` the i-th of the
// round's drafts, and `stop(i)` the i-th of the ids that end a request; none is called where it doesn't matter, and
// `sampled` once for each row that is taken.
template <class Sampled, class Draft, class Stop>
TC_RULE Next decide(const Step& step, const Asked& asked, const Limits& limits, Sampled&& sampled, Draft&& draft,
                    Stop&& stop) {
  if (asked.aborted) return {ABORTED, 0, 0, 0, 0, 0, 0, 0};
  const StepProgram& program = limits.programs[step.program];
  const uint32_t end = asked.position + asked.count, last = end + asked.generated - 1;  // the last id that was known
  if (program.drafts)
    return step.context < end ? feed_at(asked, limits, program, step.context)
                              : after_draft(step, asked, limits, program);
  const bool drafts = asked.drafts && asked.max_new && program.on_taken != NONE;
  if (step.context < end)
    return drafts ? step_at(program.on_taken, step.position, step.tokens, false)
                  : feed_at(asked, limits, program, step.context);
  if (asked.max_new == 0) return {MAX_NEW, 0, 0, 0, 0, 0, 0, 0};
  const uint32_t first = last - step.position, row = program.last_row ? 0 : first;  // what follows that id
  Next next = {NO_REASON, 0, 0, 0, 0, row, 0, 0};
  for (;;) {
    const int32_t id = sampled(row + next.taken);
    if (uint32_t(id) >= limits.vocab) {
      next.reason = reason_of(id);
      return next;
    }
    ++next.taken;
    for (uint32_t i = 0; i < limits.stop_count; ++i)
      if (stop(i) == id) next.reason = STOP_ID;
    if (next.reason == NO_REASON && asked.generated + next.taken >= asked.max_new) next.reason = MAX_NEW;
    if (next.reason == NO_REASON && last + next.taken >= limits.max_seq_len) next.reason = CONTEXT_FULL;
    if (next.reason != NO_REASON) return next;
    if (first + next.taken >= step.tokens || draft(next.taken - 1) != id) break;
  }
  const uint32_t newest = last + next.taken, taken = next.taken;
  next = drafts && depth_of(asked, limits, program, asked.generated + taken, newest)
             ? step_at(program.on_taken, step.position, first + taken, true)
             : step_at(program.on_token, newest, 1, true);
  next.row = row;
  next.taken = taken;
  return next;
}

// The program that follows a step whatever it samples, unless the request is aborted; NONE if what it samples decides.
TC_RULE uint32_t known_follower(const Step& step, const Asked& asked, const Limits& limits) {
  if (!limits.programs[step.program].drafts && step.context >= asked.position + asked.count) return NONE;
  const auto none = [](uint32_t) { return 0; };
  return decide(step, asked, limits, none, none, none).program;
}

// Most drafts of a round.
TC_RULE uint32_t most_drafts(const Limits& limits) {
  const uint32_t verify = limits.programs[limits.first_program].on_verify;
  return verify == NONE ? 0 : limits.programs[verify].tokens - 1;
}

// Whether a step goes on with what the MTP layer's caches hold, `extended` positions: then they hold its positions too.
TC_RULE bool extends(const Limits& limits, const Step& step, uint32_t extended) {
  return step.program == limits.programs[step.program].on_taken && step.position <= extended;
}

// Writes the record of a step: run `run` of its program, number `sequence` of all steps.
TC_RULE void describe(Step& to, const Next& next, uint32_t run, uint32_t sequence) {
  to.program = next.program;
  to.run = run;
  to.sequence = sequence;
  to.position = next.position;
  to.tokens = next.tokens;
  to.context = next.position + next.tokens;
  to.flags = next.flags;
  to.follower = NONE;
}
