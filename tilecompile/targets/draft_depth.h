// How many tokens a round of speculation drafts, where the request leaves it to the engine.
//
// The depth with the most tokens a second, by what the request itself has shown: how often the draft at each depth was
// accepted, and how long the steps of each program took. Averages forget, so that they follow the text. A draft that has
// not been tried counts as good as the one before it. Now and then some rounds go one deeper than the best depth, and a
// request that does without drafts tries some rounds again, so that a text that becomes easier is noticed. The text is
// the same at any depth.
#pragma once

#ifdef TC_DEVICE
#define TC_DEPTH TC_DEVICE
#else
#define TC_DEPTH inline
#endif

class DraftDepth {
 public:
  static constexpr uint32_t PROBE = 48;  // rounds between trials of one more draft
  static constexpr uint32_t REST = 96;   // tokens without speculation between trials of a round
  static constexpr uint32_t TRIAL = 4;   // rounds of a trial, or steps without drafts
  static constexpr uint32_t FIRST = 4;   // rounds before a step without drafts, in an engine's first request
  static constexpr uint32_t MEMORY = 16; // samples that an average remembers, about; while it is tried again, MEMORY / 4

  // Begins a request whose rounds draft `most` tokens at most. What steps cost is kept from the request before.
  TC_DEPTH void begin(uint32_t most) {
    most_ = most < MAX_DRAFTS ? most : MAX_DRAFTS;
    for (Mean& a : accepted_) a = {};
    depth_ = most_;
    rounds_ = plain_ = trial_ = 0;
    samples_ = false;
  }

  // A step without drafts has run in `ns`.
  TC_DEPTH void decoded(double ns) {
    decode_.time(ns);
    if (depth_ || ++plain_ < REST) return;
    plain_ = 0;
    const uint32_t found = best();
    if (!samples_)
      try_at(found ? found : 1);
    else
      depth_ = found;
    samples_ = false;
  }
  TC_DEPTH void extended(double ns) { extend_.time(ns); }
  TC_DEPTH void drafted(double ns) { draft_.time(ns); }

  // A round is over that verified `drafts` tokens in `ns`, of which `taken` were accepted.
  TC_DEPTH void verified(uint32_t drafts, uint32_t taken, double ns) {
    verify_[drafts].time(ns);
    for (uint32_t i = 0; i < drafts; ++i) accepted_[i].learn(taken > i);
    ++rounds_;
    if (decode_.count ? rounds_ % PROBE == PROBE / 2 : rounds_ == FIRST) {
      sample_plain();
    } else if (trial_ > 0) {
      --trial_;
      if (trial_ == 0) depth_ = best();
    } else if (decode_.count) {
      depth_ = best();
      if (rounds_ % PROBE == 0 && depth_ < most_) try_at(depth_ + 1);
    }
  }

  // A step of a program has run in `ns`, over that many drafts if it is one that verifies, of which `taken` were accepted.
  TC_DEPTH void ran(const Step& step, const StepProgram& program, uint32_t drafts, uint32_t taken, double ns) {
    if (step.program == program.on_taken) {
      if (step.flags & NEEDS_LOGITS) extended(ns);
    } else if (program.drafts) {
      drafted(ns);
    } else if (drafts) {
      verified(drafts, taken, ns);
    } else if (step.tokens == 1) {
      decoded(ns);
    }
  }

  // Drafts of the next round; 0: none.
  TC_DEPTH uint32_t depth() const { return depth_; }

 private:
  // An average that forgets. It is small: on a GPU it is in shared memory.
  struct Mean {
    float value = 0;
    uint32_t count = 0;
    TC_DEPTH void learn(double seen) {
      if (count < MEMORY) ++count;
      value += float((seen - value) / count);
    }
    // Of times: one step that was interrupted must not count for many.
    TC_DEPTH void time(double ns) { learn(count && ns > 2 * value ? 2 * value : ns); }
  };

  // What a step without drafts costs must be seen too, and again: some run for that alone.
  TC_DEPTH void sample_plain() {
    depth_ = trial_ = 0;
    samples_ = true;
    plain_ = REST - TRIAL;
  }

  TC_DEPTH void try_at(uint32_t depth) {
    depth_ = depth;
    trial_ = TRIAL;
    for (Mean& a : accepted_)
      if (a.count > MEMORY / 4) a.count = MEMORY / 4;
  }

  // ns of a step that verifies `drafts` tokens: as measured, or in line with the nearest depths that were.
  TC_DEPTH double verify(uint32_t drafts) const {
    if (verify_[drafts].count) return verify_[drafts].value;
    double below = decode_.value, above = 0;
    uint32_t lower = 0, upper = 0;
    for (uint32_t d = 1; d <= most_; ++d) {
      if (!verify_[d].count) continue;
      if (d < drafts) below = verify_[d].value, lower = d;
      if (d > drafts && !upper) above = verify_[d].value, upper = d;
    }
    return upper ? below + (above - below) * (drafts - lower) / (upper - lower) : below;
  }

  TC_DEPTH uint32_t best() const {
    uint32_t found = 0;
    double fastest = 1 / decode_.value, tokens = 1, last = 1;
    for (uint32_t d = 1; d <= most_; ++d) {
      if (accepted_[d - 1].count) last = accepted_[d - 1].value;
      tokens += last;
      const double rate = tokens / (verify(d) + extend_.value + (d - 1) * draft_.value);
      if (rate > fastest) fastest = rate, found = d;
    }
    return found;
  }

  uint32_t most_ = 0, depth_ = 0, rounds_ = 0, plain_ = 0, trial_ = 0;
  bool samples_ = false;
  Mean accepted_[MAX_DRAFTS], verify_[MAX_DRAFTS + 1], decode_, extend_, draft_;
};
