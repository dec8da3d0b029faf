// How many tokens a round of speculation drafts, where the request leaves it to the engine.
//
// The depth with the most tokens a second, by what the request itself has shown: how often the draft at each depth was
// accepted, and how long the steps of each program took. Averages forget, so that they follow the text. A depth that has
// not been tried counts as good as the last one that was, and now and then a round goes one deeper than the best depth,
// so that a text that becomes easier to predict is noticed. The text is the same at any depth.
#pragma once

class DraftDepth {
 public:
  static constexpr uint32_t PROBE = 24;         // rounds between two that go deeper
  static constexpr uint32_t REST = 48;          // tokens without speculation before a round is tried again
  static constexpr uint32_t FIRST = 4;          // rounds before a step without drafts, in an engine's first request

  // Begins a request whose rounds draft `most` tokens at most. What steps cost is kept from the request before.
  void begin(uint32_t most) {
    most_ = most < MAX_DRAFTS ? most : MAX_DRAFTS;
    for (double& a : accepted_) a = -1;
    depth_ = most_;
    rounds_ = plain_ = 0;
  }

  // A step has run: its kind, the drafts that it verified, and its time in ns.
  void decoded(double ns) {
    learn(decode_, ns);
    ++plain_;
    if (depth_ == 0 && plain_ >= REST) {
      plain_ = 0;
      const uint32_t found = best();
      depth_ = found ? found : 1;
    }
  }
  void extended(double ns) { learn(extend_, ns); }
  void drafted(double ns) { learn(draft_, ns); }

  // A round is over that verified `drafts` tokens, of which `taken` were accepted.
  void verified(uint32_t drafts, uint32_t taken, double ns) {
    learn(verify_[drafts], ns);
    for (uint32_t i = 0; i < drafts; ++i) {
      double& a = accepted_[i];
      const double seen = taken > i;
      a = a < 0 ? seen : a + (seen - a) * RATE;
    }
    ++rounds_;
    if (decode_ == 0 && rounds_ == FIRST) {  // what a step without drafts costs must be seen once
      depth_ = 0;
      plain_ = REST - 2;
    } else if (decode_ > 0) {
      depth_ = best();
      if (rounds_ % PROBE == 0 && depth_ < most_) ++depth_;
    }
  }

  // Drafts of the next round; 0: none.
  uint32_t depth() const { return depth_; }

 private:
  static constexpr double RATE = 1.0 / 16;

  static void learn(double& mean, double ns) { mean = mean == 0 ? ns : mean + (ns - mean) * RATE; }

  // ns of a step that verifies `drafts` tokens: as measured, or in line with the nearest depths that were.
  double verify(uint32_t drafts) const {
    if (verify_[drafts] > 0) return verify_[drafts];
    double below = decode_, above = 0;
    uint32_t lower = 0, upper = 0;
    for (uint32_t d = 1; d <= most_; ++d) {
      if (verify_[d] <= 0) continue;
      if (d < drafts) below = verify_[d], lower = d;
      if (d > drafts && above == 0) above = verify_[d], upper = d;
    }
    if (above == 0) return below;
    if (below == 0) return above;
    return below + (above - below) * (drafts - lower) / (upper - lower);
  }

  uint32_t best() const {
    uint32_t found = 0;
    double fastest = 1 / decode_, tokens = 1, last = 1;
    for (uint32_t d = 1; d <= most_; ++d) {
      const double a = accepted_[d - 1];
      last = a >= 0 ? a : last;
      tokens += last;
      const double rate = tokens / (verify(d) + extend_ + (d - 1) * draft_);
      if (rate > fastest) fastest = rate, found = d;
    }
    return found;
  }

  uint32_t most_ = 0, depth_ = 0, rounds_ = 0, plain_ = 0;
  double accepted_[MAX_DRAFTS] = {}, verify_[MAX_DRAFTS + 1] = {};
  double decode_ = 0, extend_ = 0, draft_ = 0;
};
