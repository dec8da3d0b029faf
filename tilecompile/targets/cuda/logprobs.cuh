// Log-probabilities of the tokens that a step gives, for requests that ask for them: by all consumers of the controller's
// block, before the next step may begin. They are the CPU's bit for bit: a maximum, a sum of whole numbers, one logarithm.
#pragma once

namespace tc {

// Of an id by the softmax of some logits, then of the n likeliest ids: n ids, the lowest first at ties, and n numbers.
// Thread 0 writes them to host memory. `room` is shared memory for a Ranked a thread.
TC_DEVICE void log_probabilities(const float* logits, uint32_t vocab, int32_t id, uint32_t n, uint32_t* out, char* room) {
  Ranked* const ranked = reinterpret_cast<Ranked*>(room);
  const uint32_t me = thread();
  Ranked mine;
  for (uint32_t i = me; i < vocab; i += CONSUMERS) mine.take(load(logits + i), int32_t(i));
  Ranked best = best_of(mine, ranked);
  uint64_t sum = 0;
  for (uint32_t i = me; i < vocab; i += CONSUMERS)
    sum += sampling::mass_of<sampling::LOGPROB_BITS>(double(load(logits + i)) - best.value);
  const double log_sum = sampling::log_sum(float(best.value), sum_of(sum, reinterpret_cast<uint64_t*>(room)));
  const auto write = [&](uint32_t at, float logit) {
    store_relaxed_sys(out + at, __builtin_bit_cast(uint32_t, sampling::log_probability(logit, log_sum)));
  };
  if (me == 0) write(0, load(logits + id));
  for (uint32_t k = 0; k < n && best.id >= 0; ++k) {
    if (me == 0) {
      store_relaxed_sys(out + 1 + k, uint32_t(best.id));
      write(1 + n + k, float(best.value));
    }
    // The thread that had it gets the next one of its ids, for which all look.
    const uint32_t whose = uint32_t(best.id) % CONSUMERS;
    Ranked next;
    for (uint32_t i = whose + me * CONSUMERS; i < vocab; i += CONSUMERS * CONSUMERS) {
      const double value = load(logits + i);
      if (value < best.value || (value == best.value && int32_t(i) > best.id)) next.take(value, int32_t(i));
    }
    next = best_of(next, ranked);
    if (me == whose) mine = next;
    best = best_of(mine, ranked);
  }
}

// Those of the tokens that the controller is about to take.
TC_DEVICE void keep_log_probabilities(const Worker& w, const Step& step, char* room) {
  const Control& c = w.b.control;
  const uint32_t width = 1 + 2 * c.mail.logprob_count;
  for (uint32_t i = 0; i < c.next.taken; ++i) {
    const uint32_t row = c.next.row + i;
    log_probabilities(at<float>(c.programs[step.program].logits) + size_t(row) * w.l.vocab, w.l.vocab, c.sampled[row],
                      c.mail.logprob_count, at<uint32_t>(c.mail.logprobs) + size_t(c.generated + i) * width, room);
  }
}

}  // namespace tc
