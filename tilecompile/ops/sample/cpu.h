// sample: the id that follows a token, by the rules that `reference.py` states; equal to it bit for bit, on any
// instruction set (ops/kit/sampling.h).
#pragma once

namespace sampling {

// What a body works with, in the thread's scratch memory.
template <int V>
struct Room {
  uint64_t sums[1 << INTERVAL_BITS];
  uint64_t mass[V];  // probability relative to the likeliest one's, in units of 2^-40
  float x[V];
  int32_t ids[V];  // those that are left, ascending
};

// The key of the element at which the sum over the elements in the order of their keys exceeds `limit`, and the sum
// before all elements of that key. `of(i)` is (key, addend) of the i-th; sums don't depend on the order.
template <class Of>
inline uint32_t key_at(uint64_t* sums, int n, uint64_t limit, uint64_t& before, Of&& of) {
  uint32_t found = 0;
  int low = 32;
  before = 0;
  while (low > 0) {
    const int bits = low < INTERVAL_BITS ? low : INTERVAL_BITS, above = low;
    low -= bits;
    memset(sums, 0, sizeof(uint64_t) << bits);
    for (int i = 0; i < n; ++i) {
      const auto [key, addend] = of(i);
      if (above < 32 && key >> above != found) continue;
      sums[(key >> low) & ((1u << bits) - 1)] += addend;
    }
    uint32_t j = 0, last = 0;
    for (; j < (1u << bits); ++j) {
      if (!sums[j]) continue;
      last = j;
      if (before + sums[j] > limit) break;
      before += sums[j];
    }
    if (j == (1u << bits)) j = last, before -= sums[last];  // all of it is within the limit: the largest key
    found = found << bits | j;
  }
  return found;
}

struct Weighed {
  uint32_t key;
  uint64_t addend;
};

// Whether all logits are finite numbers: the product of another one with zero is NaN, and so is every sum with it.
template <int V>
INLINE bool finite(const float* x) {
  v16 sums[4] = {zero(), zero(), zero(), zero()};
  float sum = 0;
  int i = 0;
  for (; i + 64 <= V; i += 64)
    repeat<4 * PARTS>([&](int k) INLINED {
      vf v;
      memcpy(&v, x + i + LANES * k, sizeof v);
      sums[k / PARTS].p[k % PARTS] += v * 0.f;
    });
  for (; i < V; ++i) sum += x[i] * 0.f;
  for (const v16& one : sums) {
    alignas(64) float lanes[16];
    store(lanes, one);
    for (float lane : lanes) sum += lane;
  }
  return sum == 0;
}

// The logits with bias and penalties, without ids that aren't allowed. `ids` are those of the step up to this token,
// n of them, the first at `position`; they aren't counted yet.
template <int V>
inline void adjust(const Sampling& s, const float* logits, const float* bias, const int32_t* counts, const int32_t* ids,
                   int n, uint32_t position, float* x) {
  if (s.flags & BIASED)
    for (int i = 0; i < V; ++i) x[i] = logits[i] + bias[i];
  else
    memcpy(x, logits, sizeof(float) * V);
  if (s.flags & COUNTED) {
    float own[MAX_TOKENS];
    for (int t = 0; t < n; ++t)
      own[t] = penalised(s, x[ids[t]], counted_with(counts, ids, n, ids[t], position, s.text_begin));
    for (int i = 0; i < V; ++i)
      if (counts[i]) x[i] = penalised(s, x[i], counts[i]);
    for (int t = 0; t < n; ++t) x[ids[t]] = own[t];
  }
  if (position + n < s.stop_begin)
    for (uint32_t i = 0; i < s.stop_count; ++i) x[s.stops[i]] = -INFINITY;
}

// Drops the ids that top-k, top-p and min-p exclude; returns how many are left in `room.ids`. `best` is the largest x.
template <int V>
inline int filter(const Sampling& s, Room<V>& room, float best) {
  const auto kept = [&](int n, auto&& keeps) {
    int left = 0;
    for (int i = 0; i < n; ++i)
      if (keeps(room.ids[i])) room.ids[left++] = room.ids[i];
    return left;
  };
  int n = V;
  for (int i = 0; i < V; ++i) room.ids[i] = i;
  const auto key = [&](int id) { return ordered(room.x[id]); };
  if (s.top_k && s.top_k < uint32_t(V)) {  // all that equal the k-th stay
    uint64_t before;
    const uint32_t least =
        key_at(room.sums, n, uint64_t(V) - s.top_k, before, [&](int i) { return Weighed{key(room.ids[i]), 1}; });
    n = kept(n, [&](int id) { return key(id) >= least; });
  }
  if (s.top_p >= 1 && s.min_p <= 0) return n;
  uint64_t total = 0;
  for (int i = 0; i < n; ++i) {
    const uint64_t mass = mass_of<MASS_BITS>(double(room.x[room.ids[i]]) - double(best));
    room.mass[room.ids[i]] = mass;
    total += mass;
  }
  if (s.top_p < 1) {  // from the least likely on, ids go as long as their probabilities reach no more than 1 - p
    const uint64_t limit = left_out(s.top_p, total);
    uint64_t before;
    const uint32_t least = key_at(room.sums, n, limit, before,
                                  [&](int i) { return Weighed{key(room.ids[i]), room.mass[room.ids[i]]}; });
    int32_t last = 0;  // always stays
    for (int i = 0; i < n; ++i)
      if (key(room.ids[i]) == ordered(best)) last = room.ids[i];
    n = kept(n, [&](int id) {  // of equal ones the lowest ids go first
      if (key(id) != least) return key(id) > least;
      before += room.mass[id];
      return before > limit || id == last;
    });
  }
  const uint64_t lowest = least_mass(s.min_p);
  return kept(n, [&](int id) { return room.mass[id] >= lowest; });
}

template <int V>
inline int32_t sample_row(const Sampling& s, const float* logits, const float* bias, const int32_t* counts,
                          const int32_t* ids, int n, uint32_t position, char* scratch) {
  if (!finite<V>(logits)) return NOT_FINITE_ID;
  if (s.temperature == 0 && !s.flags && position + n >= s.stop_begin) return argmax_row(logits, V);
  Room<V>& room = *reinterpret_cast<Room<V>*>(scratch);
  adjust<V>(s, logits, bias, counts, ids, n, position, room.x);
  const int32_t likeliest = argmax_row(room.x, V);
  if (room.x[likeliest] == -INFINITY) return NOTHING_ALLOWED_ID;
  if (s.temperature == 0) return likeliest;
  for (int i = 0; i < V; ++i) room.x[i] = scaled(room.x[i], s.temperature);
  const bool all = (s.top_k == 0 || s.top_k >= uint32_t(V)) && s.top_p >= 1 && s.min_p <= 0;
  const int left = all ? V : filter<V>(s, room, room.x[likeliest]);
  double best = -INFINITY;
  int32_t chosen = likeliest;
  uint32_t group = NONE, words[4];
  for (int i = 0; i < left; ++i) {
    const uint32_t id = uint32_t(all ? i : room.ids[i]);
    if (id / 4 != group) philox(s.seed, position + n, group = id / 4, words);
    const uint32_t word = words[id % 4];
    const double x = room.x[id];
    if (x + gumbel_bound(word) < best) continue;  // most of them: no logarithms
    const double y = x + gumbel(word);
    if (y > best) best = y, chosen = int32_t(id);
  }
  return chosen;
}

}  // namespace sampling

// The task of one row of the logits. Row r follows the step's first r + 1 ids, or all of them if it is the only one;
// the first of these ids is `shift` positions behind the step's.
template <int V>
inline void sample(const Call& c, int tokens, bool only, uint32_t shift, const float* logits, int stride, int32_t* y) {
  const int row = c.tile(0), n = only ? tokens : row + 1;
  if (n > tokens) return;
  c.scratch->norm_x = nullptr;
  y[row] = sampling::sample_row<V>(*c.arg<const Sampling>(3), logits + size_t(row) * stride, c.arg<const float>(4),
                                   c.arg<const int32_t>(5), c.arg<const int32_t>(1), n,
                                   uint32_t(c.arg<const int32_t>(2)[0]) + shift, c.scratch->base);
}
