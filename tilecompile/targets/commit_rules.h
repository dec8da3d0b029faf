// The rules of a request: the step that it begins with, what follows a step, and why it ends.
//
// Pure functions of numbers, the same for every target. The loops that include them do the rest: they read and write
// memory, in their own order. `interpret/commit_rules.py` says the same in Python, and a test compares the two.
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
  uint32_t generated;    // tokens so far
  uint32_t aborted;      // 1: it is to end
};

// What all requests of a launch have in common.
struct Limits {
  const StepProgram* programs;
  uint32_t first_program, vocab, max_seq_len, stop_count;
};

// What follows: a step, or the end of the request.
struct Next {
  uint32_t reason;   // Reason; NO_REASON: the step that the next five fields describe
  uint32_t program, position, tokens, flags;  // as in Step
  uint32_t source;   // IdSource of its ids
  uint32_t row;      // of the sampled ids, the first that the request takes
  uint32_t taken;    // how many it takes: as many tokens are new
};

// Ids of the prompt that have been fed once `context` positions are valid.
TC_RULE uint32_t fed_of(const Asked& asked, uint32_t context) {
  const uint32_t end = asked.position + asked.count;
  return (context < end ? context : end) - asked.position;
}

// A step of `tokens` tokens from a position on.
TC_RULE Next step_at(const Asked& asked, uint32_t program, uint32_t position, uint32_t tokens, IdSource source) {
  const bool last = position + tokens >= asked.position + asked.count;  // what follows its last token is up to the model
  return {NO_REASON, program, position, tokens, asked.every_logit || last ? NEEDS_LOGITS : 0, source, 0, 0};
}

// A step that takes as many of the prompt's ids from a position on as its program can.
TC_RULE Next feed_at(const Asked& asked, const Limits& limits, uint32_t program, uint32_t position) {
  const uint32_t left = asked.position + asked.count - position, most = limits.programs[program].tokens;
  return step_at(asked, program, position, left < most ? left : most, PROMPT_IDS);
}

// The step that a request begins with.
TC_RULE Next first_step(const Asked& asked, const Limits& limits) {
  return feed_at(asked, limits, limits.first_program, asked.position);
}

// What follows a step. `sampled(row)` is the id that the step chose after its token `row`, and `stop(i)` the i-th of the
// ids that end a request; neither is called where it doesn't matter, and `sampled` once for each row that is taken.
template <class Sampled, class Stop>
TC_RULE Next decide(const Step& step, const Asked& asked, const Limits& limits, Sampled&& sampled, Stop&& stop) {
  const auto end = [](Reason reason, uint32_t row = 0, uint32_t taken = 0) {
    return Next{reason, 0, 0, 0, 0, 0, row, taken};
  };
  if (asked.aborted) return end(ABORTED);
  const StepProgram& program = limits.programs[step.program];
  if (step.context < asked.position + asked.count) return feed_at(asked, limits, program.on_prompt, step.context);
  if (asked.max_new == 0) return end(MAX_NEW);
  const uint32_t row = step.tokens - 1, taken = 1;  // the last token's
  const int32_t id = sampled(row);
  if (uint32_t(id) >= limits.vocab) return end(BAD_ID);  // bodies take ids on trust
  for (uint32_t i = 0; i < limits.stop_count; ++i)
    if (stop(i) == id) return end(STOP_ID, row, taken);
  if (asked.generated + taken >= asked.max_new) return end(MAX_NEW, row, taken);
  if (step.context >= limits.max_seq_len) return end(CONTEXT_FULL, row, taken);
  Next next = step_at(asked, program.on_token, step.context, taken, SAMPLED_IDS);
  next.row = row;
  next.taken = taken;
  return next;
}

// Writes the record of a step, all but its ids: run `run` of its program, number `sequence` of all steps.
TC_RULE void describe(Step& to, const Next& next, uint32_t run, uint32_t sequence) {
  to.program = next.program;
  to.run = run;
  to.sequence = sequence;
  to.position = next.position;
  to.tokens = next.tokens;
  to.context = next.position + next.tokens;
  to.flags = next.flags;
}
