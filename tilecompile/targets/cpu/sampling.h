// What the controller does for bodies that sample: it hands them the request's parameters and what they need to know of
// the ids before a step, and takes log-probabilities from the logits.
#pragma once

struct Sampler {
  Sampling record = {};     // of the request
  bool masks = false;       // the host says before each token which ids are allowed
  std::vector<int32_t> bias_ids;
  std::vector<float> biases;
  uint32_t vocab = 0;
  float* bias = nullptr;    // the tensors of SAMPLING_INPUTS; null in a kernel without
  int32_t* counts = nullptr;
  uint32_t counted = 0;     // generated ids that `counts` has

  // Takes a request's parameters; no step runs.
  void begin(const Request& request, uint32_t vocab, Sampling* to, float* bias, int32_t* counts) {
    record = request.sampling ? *reinterpret_cast<const Sampling*>(request.sampling) : Sampling{};
    masks = request.allowed != 0;
    this->vocab = vocab, this->bias = bias, this->counts = counts;
    *to = record;
    const int32_t* ids = reinterpret_cast<const int32_t*>(request.bias_ids);
    const float* values = reinterpret_cast<const float*>(request.biases);
    bias_ids.assign(ids, ids + request.bias_count);
    biases.assign(values, values + request.bias_count);
    if (record.flags & BIASED) allow(reinterpret_cast<const uint8_t*>(request.allowed));
    counted = 0;
    if (!(record.flags & COUNTED)) return;
    memset(counts, 0, sizeof(int32_t) * vocab);
    const auto mark = [&](uint64_t address, uint32_t count) {
      for (uint32_t i = 0; i < count; ++i) counts[reinterpret_cast<const int32_t*>(address)[i]] = 1;
    };
    mark(request.before, request.position);
    mark(request.ids, request.count);
  }

  // Writes `bias` for the next token; `bits` has bit i % 8 of byte i / 8 for each id, or is null: all are allowed.
  void allow(const uint8_t* bits) {
    memset(bias, 0, sizeof(float) * vocab);
    for (size_t i = 0; i < bias_ids.size(); ++i) bias[bias_ids[i]] = biases[i];
    if (bits)
      for (uint32_t i = 0; i < vocab; ++i)
        if (!(bits[i / 8] >> i % 8 & 1)) bias[i] = -INFINITY;
  }

  // Makes `counts` those before a step whose first id is at `position`; `tokens` are the `generated` ids. Ids of the
  // prompt are all counted from the beginning: what is sampled comes after all of them.
  void count_to(uint32_t position, const int32_t* tokens, uint32_t generated) {
    if (!(record.flags & COUNTED)) return;
    const uint32_t before = position < record.text_begin ? 0 : position - record.text_begin;
    const uint32_t until = before < generated ? before : generated;
    for (; counted < until; ++counted) counts[tokens[counted]] += 2;
    for (; counted > until; --counted) counts[tokens[counted - 1]] -= 2;
  }
};

// Writes the log-probability of `id` by the softmax of some logits, then those of the n likeliest ids: n ids, the lowest
// first at ties, and n numbers.
inline void log_probabilities(const float* logits, uint32_t vocab, int32_t id, uint32_t n, int32_t* out) {
  float* const own = reinterpret_cast<float*>(out);
  int32_t* const ids = out + 1;
  float* const values = own + 1 + n;
  float best = -INFINITY;
  uint32_t have = 0;
  for (uint32_t i = 0; i < vocab; ++i) {
    if (logits[i] > best) best = logits[i];
    if (n == 0 || (have == n && !(logits[i] > values[n - 1]))) continue;
    uint32_t j = have < n ? have++ : n - 1;
    for (; j > 0 && logits[i] > values[j - 1]; --j) values[j] = values[j - 1], ids[j] = ids[j - 1];
    values[j] = logits[i], ids[j] = int32_t(i);
  }
  uint64_t sum = 0;
  for (uint32_t i = 0; i < vocab; ++i) sum += sampling::mass_of<sampling::LOGPROB_BITS>(double(logits[i]) - double(best));
  const double log_sum = sampling::log_sum(best, sum);
  own[0] = sampling::log_probability(logits[id], log_sum);
  for (uint32_t j = 0; j < n; ++j) values[j] = sampling::log_probability(values[j], log_sum);
}
