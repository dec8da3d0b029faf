// sample: the id that follows a token, by the rules that `reference.py` states, of the same parts as the CPU's body
// (ops/kit/sampling.h). All that decides is a maximum or a sum of whole numbers, so the id is the CPU's, bit for bit,
// in whatever order the threads come.
//
// One block takes a row. Values of ids are computed anew in each pass over the vocabulary, since shared memory doesn't
// hold them; they come from the L2 cache. A pass finds the interval, of those of 1/51 that the logits lie in, where a
// filter ends; only ids from there on are looked at afterwards, from a list where they fit into one.
#pragma once

namespace tc {

constexpr int SAMPLE_BINS = 1 << INTERVAL_BITS;
constexpr int SAMPLE_LISTED = 8 * CONSUMERS;                 // ids that a list has room for
constexpr int SAMPLE_CHANGED = MAX_STOP_IDS + BODY_TOKENS;  // most ids whose values have a reason of their own

template <int V>
struct SampleRoom {
  uint64_t bins[SAMPLE_BINS];
  uint64_t sums[2][CONSUMERS];
  uint64_t before;
  uint32_t bin, bad, listed, changes;
  int32_t list[SAMPLE_LISTED];
  int32_t changed[SAMPLE_CHANGED];
  float changed_to[SAMPLE_CHANGED];
  uint32_t marked[(V + 31) / 32];  // whether an id is in `changed`
};

struct Penalties {
  float repetition, presence, frequency;
};

template <int V>
struct SampleRow {
  static constexpr int EACH = SAMPLE_BINS / CONSUMERS;
  static constexpr uint32_t NO_LIST = NONE;

  const Call& c;
  const Sampling& s;
  const float* logits;
  const float* bias;
  const int32_t* counts;
  SampleRoom<V>& room;
  uint32_t flags = s.flags;
  float temperature = s.temperature;
  Penalties penalties = {s.repetition, s.presence, s.frequency};
  bool changes = false;
  float best = 0;             // the largest value
  uint32_t listed = NO_LIST;  // how many ids the list has, or that there is none
  uint32_t least = 0;         // of the ids that are left: the least value, as it is ordered,
  int32_t first = 0;          // and the first id with it

  // The logit with bias and penalties.
  TC_DEVICE float adjusted(int32_t id) const {
    if (changes && room.marked[id / 32] >> id % 32 & 1)
      for (uint32_t i = 0; i < room.changes; ++i)
        if (room.changed[i] == id) return room.changed_to[i];
    float x = logits[id];
    if (flags & BIASED) x += bias[id];
    if (!(flags & COUNTED)) return x;
    const int32_t count = counts[id];
    return count ? sampling::penalised(penalties, x, count) : x;
  }
  TC_DEVICE float value(int32_t id) const { return sampling::scaled(adjusted(id), temperature); }

  // Notes the values of the stop ids where they aren't allowed, and of the step's own ids: n of them, up to this token.
  TC_DEVICE void change(const int32_t* ids, int n, uint32_t position) {
    const int stops = position + n < s.stop_begin ? int(s.stop_count) : 0, own = flags & COUNTED ? n : 0;
    changes = stops + own > 0;
    if (!changes) return;
    for (int i = c.thread; i < (V + 31) / 32; i += CONSUMERS) room.marked[i] = 0;
    if (c.thread < stops) {
      room.changed[c.thread] = s.stops[c.thread];
      room.changed_to[c.thread] = sampling::NEVER;
    }
    if (c.thread < own) {  // behind the stop ids: of several values of an id the first counts
      const int32_t id = ids[c.thread];
      const float x = flags & BIASED ? logits[id] + bias[id] : logits[id];
      const int32_t count = sampling::counted_with(counts, ids, n, id, position, s.text_begin);
      room.changed[stops + c.thread] = id;
      room.changed_to[stops + c.thread] = sampling::penalised(penalties, x, count);
    }
    body_barrier();
    if (c.thread == 0) {
      room.changes = stops + own;
      for (int i = 0; i < stops + own; ++i) room.marked[room.changed[i] / 32] |= 1u << room.changed[i] % 32;
    }
    body_barrier();
  }

  // Calls f(id) for the ids of four at a time, which share random words.
  template <class F>
  TC_DEVICE void all(F&& f) const {
    for (int i = 4 * c.thread; i < V; i += 4 * CONSUMERS)
      for (int k = 0; k < 4; ++k)
        if (V % 4 == 0 || i + k < V) f(i + k);
  }
  // Calls f(id, value) for all ids that can be left.
  template <class F>
  TC_DEVICE void each(F&& f) const {
    if (listed != NO_LIST) {
      for (uint32_t i = c.thread; i < listed; i += CONSUMERS) f(room.list[i], value(room.list[i]));
      return;
    }
    for (int i = 4 * c.thread; i < V; i += 4 * CONSUMERS) {
      float x[4];  // loaded before any is used
      TC_UNROLL
      for (int k = 0; k < 4; ++k) x[k] = V % 4 == 0 || i + k < V ? value(i + k) : 0.f;
      TC_UNROLL
      for (int k = 0; k < 4; ++k)
        if (V % 4 == 0 || i + k < V) f(i + k, x[k]);
    }
  }

  // The likeliest id, with its logit; `bad` becomes whether a logit isn't a finite number.
  TC_DEVICE Ranked likeliest(bool& bad) {
    if (c.thread == 0) room.bad = 0;
    body_barrier();
    Ranked mine;
    all([&](int32_t id) {
      const float x = logits[id];
      if (!(x - x == 0.f)) room.bad = 1;
      mine.take(adjusted(id), id);
    });
    const Ranked found = best_of(mine, reinterpret_cast<Ranked*>(room.bins));
    bad = room.bad;
    return found;
  }

  TC_DEVICE bool left(int32_t id, float x) const {
    const uint32_t key = sampling::ordered(x);
    return key > least || (key == least && id >= first);
  }
  TC_DEVICE uint64_t mass(float x) const { return sampling::mass_of<sampling::MASS_BITS>(double(x) - double(best)); }

  // Values in intervals of 1/51, ascending as they do; all that are 39 or more below the best are in the first.
  TC_DEVICE uint32_t interval(float x) const {
    if (x == best) return SAMPLE_BINS - 1;
    const float d = best - x;
    return d < 39.f ? SAMPLE_BINS - 1 - uint32_t(d * 51.2f) : 0;
  }

  // The sum of what the threads before this one have, and of all.
  TC_DEVICE uint64_t sum_before(uint64_t mine, uint64_t& all) const {
    int from = 0;
    room.sums[0][c.thread] = mine;
    body_barrier();
    for (int d = 1; d < CONSUMERS; d *= 2, from = 1 - from) {
      room.sums[1 - from][c.thread] = room.sums[from][c.thread] + (c.thread >= d ? room.sums[from][c.thread - d] : 0);
      body_barrier();
    }
    all = room.sums[from][CONSUMERS - 1];
    return room.sums[from][c.thread] - mine;
  }

  // `of(id, x)` is a bin and what it gets. The bin at which the sum over bins in their order, which begins with `before`,
  // exceeds `limit(all of them)`, or the last with anything; `before` becomes the sum of those in front of it.
  struct Part {
    uint32_t bin;
    uint64_t addend;
  };
  template <class Of, class Limit>
  TC_DEVICE uint32_t find(Of&& of, Limit&& limit, uint64_t& before) const {
    body_barrier();
    for (int i = c.thread; i < SAMPLE_BINS; i += CONSUMERS) room.bins[i] = 0;
    if (c.thread == 0) room.bin = 0, room.before = before;
    body_barrier();
    each([&](int32_t id, float x) {
      const Part part = of(id, x);
      if (part.addend) add_block(&room.bins[part.bin], part.addend);
    });
    body_barrier();
    uint64_t mine = 0, all;
    for (int i = 0; i < EACH; ++i) mine += room.bins[c.thread * EACH + i];
    uint64_t sum = before + sum_before(mine, all);
    const uint64_t most = limit(all), end = before + all;
    for (int i = 0; i < EACH; ++i) {
      const uint64_t addend = room.bins[c.thread * EACH + i];
      if (addend && sum <= most && (sum + addend > most || sum + addend == end)) {
        room.bin = c.thread * EACH + i;
        room.before = sum;
      }
      sum += addend;
    }
    body_barrier();
    before = room.before;
    return room.bin;
  }

  // The same for numbers of `bits` bits, a few bits a round: `of(id, x)` is a number and what counts for it.
  template <class Of>
  TC_DEVICE uint32_t find_number(int bits, uint64_t limit, uint64_t& before, Of&& of) const {
    uint32_t found = 0;
    TC_ROLLED
    while (bits > 0) {
      const int now = bits < INTERVAL_BITS ? bits : INTERVAL_BITS, low = bits - now;
      const uint32_t bin = find(
          [&](int32_t id, float x) {
            const Part part = of(id, x);
            const uint64_t above = uint64_t(part.bin) >> bits;
            return Part{part.bin >> low & ((1u << now) - 1), above == found ? part.addend : 0};
          },
          [&](uint64_t) { return limit; }, before);
      found = found << now | bin;
      bits = low;
    }
    return found;
  }

  // Lists the ids that are left from an interval on, if there is room for them.
  TC_DEVICE void make_list(uint32_t from) {
    if (listed != NO_LIST) return;
    if (c.thread == 0) room.listed = 0;
    body_barrier();
    each([&](int32_t id, float x) {
      if (interval(x) < from || !left(id, x)) return;
      const uint32_t at = add_block(&room.listed, 1u);
      if (at < SAMPLE_LISTED) room.list[at] = id;
    });
    body_barrier();
    if (room.listed <= SAMPLE_LISTED) listed = room.listed;
  }

  // Leaves the ids whose values, weighed by `weight` and summed up from the least on, exceed `limit(all)`, and those
  // that equal the first of them. Returns what may still be left out of these.
  template <class Weight, class Limit>
  TC_DEVICE uint64_t leave(Weight&& weight, Limit&& limit) {
    uint64_t before = 0, most = 0;
    const uint32_t from = find(
        [&](int32_t id, float x) {
          return Part{interval(x), left(id, x) ? weight(x) : 0};
        },
        [&](uint64_t all) { return most = limit(all); }, before);
    make_list(from);
    least = find_number(32, most, before, [&](int32_t id, float x) {
      return Part{sampling::ordered(x), interval(x) == from && left(id, x) ? weight(x) : 0};
    });
    return most - before;
  }

  TC_DEVICE void filter(uint32_t top_k, double top_p) {
    if (top_k && top_k < uint32_t(V))  // all that equal the k-th stay
      leave([](float) { return uint64_t(1); }, [&](uint64_t all) { return all - top_k; });
    if (top_p >= 1) return;
    const uint64_t rest = leave([&](float x) { return mass(x); },
                                [&](uint64_t all) { return sampling::left_out(top_p, all); });
    const uint32_t bits = least >> 31 ? least & 0x7fffffffu : ~least;
    float x;
    memcpy(&x, &bits, 4);
    const uint64_t one = mass(x);
    if (!one || rest < one) return;
    uint64_t before = 0;  // of equal ones the lowest ids go first, but the last stays
    first = int32_t(find_number(2 * INTERVAL_BITS, rest / one, before, [&](int32_t id, float x) {
      return Part{uint32_t(id), sampling::ordered(x) == least ? uint64_t(1) : 0};
    }));
  }

  // The id with the largest value and noise of those that are left.
  TC_DEVICE int32_t draw(uint32_t position, int32_t otherwise) const {
    const uint64_t seed = s.seed, lowest = s.min_p > 0 ? sampling::least_mass(s.min_p) : 0;
    Ranked mine;
    uint32_t group = NONE, words[4];
    each([&](int32_t id, float x) {
      if (!left(id, x) || (lowest && mass(x) < lowest)) return;
      if (uint32_t(id) / 4 != group) sampling::philox(seed, position, group = uint32_t(id) / 4, words);
      const uint32_t low = id & 1 ? words[1] : words[0], high = id & 1 ? words[3] : words[2], word = id & 2 ? high : low;
      if (double(x) + sampling::gumbel_bound(word) < mine.value) return;  // most of them: no logarithms
      mine.take(double(x) + sampling::gumbel(word), id);
    });
    const Ranked found = best_of(mine, reinterpret_cast<Ranked*>(room.bins));
    return found.id < 0 ? otherwise : found.id;
  }

  TC_DEVICE int32_t run(const int32_t* ids, int n, uint32_t position) {
    change(ids, n, position);
    bool bad;
    const Ranked top = likeliest(bad);
    if (bad) return NOT_FINITE_ID;
    if (top.id < 0) return NOTHING_ALLOWED_ID;
    if (temperature == 0) return top.id;
    best = sampling::scaled(float(top.value), temperature);
    filter(s.top_k, s.top_p);
    return draw(position + n, top.id);
  }
};

// The task of one row of the logits, of a step of at most T tokens. Row r follows the step's first r + 1 ids, or all of
// them if it is the only one; the first of these ids is `shift` positions behind the step's.
template <int V, int T>
TC_DEVICE void sample(const Call& c, bool only, uint32_t shift, const float* logits, int stride, int32_t* y) {
  static_assert(V <= 1 << (2 * INTERVAL_BITS) && SAMPLE_BINS % CONSUMERS == 0 && T <= BODY_TOKENS);
  static_assert(sizeof(Ranked) * CONSUMERS <= 8 * SAMPLE_BINS && MAX_STOP_IDS <= CONSUMERS);
  const int row = c.tile(0), n = only ? c.tokens<T>() : row + 1;
  if (n > c.tokens<T>()) return;
  SampleRow<V> it{c,
                  *c.arg<const Sampling>(3),
                  logits + size_t(row) * stride,
                  c.arg<const float>(4),
                  c.arg<const int32_t>(5),
                  *reinterpret_cast<SampleRoom<V>*>(c.scratch)};
  const int32_t id = it.run(c.arg<const int32_t>(1), n, uint32_t(c.arg<const int32_t>(2)[0]) + shift);
  if (c.thread == 0) y[row] = id;
}

}  // namespace tc
