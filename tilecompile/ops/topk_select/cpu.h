// topk_select: the positions of the TOPK largest scores, ascending; of equal scores the lowest position wins.
//
// Exact, in time proportional to the context: a histogram over the range of the scores says which of 2048 intervals
// contains the TOPK-th largest; the scores in that interval are the candidates of the next round, at most three in all.
#pragma once

// Integers that compare as the scores do; -0 equals 0.
inline uint32_t order_key(float x) {
  const float y = x + 0.f;
  uint32_t u;
  memcpy(&u, &y, 4);
  return u ^ (uint32_t(int32_t(u) >> 31) | 0x80000000u);
}

// From `count` keys those in lo..hi to `out`, which may be `keys` itself; returns how many. They are few.
inline int keep_between(const uint32_t* keys, int count, uint32_t lo, uint32_t hi, uint32_t* out) {
  constexpr int BLOCK = 64;
  int kept = 0, i = 0;
  for (; i + BLOCK <= count; i += BLOCK) {
    uint32_t any = 0;
    for (int j = 0; j < BLOCK; ++j) any |= keys[i + j] - lo <= hi - lo ? 1u : 0u;
    if (!any) continue;
    for (int j = i; j < i + BLOCK; ++j) {
      const uint32_t key = keys[j];
      out[kept] = key;
      kept += key - lo <= hi - lo;
    }
  }
  for (; i < count; ++i) {
    const uint32_t key = keys[i];
    out[kept] = key;
    kept += key - lo <= hi - lo;
  }
  return kept;
}

// Of the first n > TOPK scores; `scratch` has room for 2 * n keys and the histogram.
template <int TOPK>
inline void select_row(const float* scores, int n, int32_t* out, uint32_t* scratch) {
  uint32_t* count = scratch;
  uint32_t* keys = count + (1 << INTERVAL_BITS);
  uint32_t* candidates = keys + n;
  uint32_t lo = ~0u, hi = 0;
  for (int i = 0; i < n; ++i) {
    const uint32_t key = order_key(scores[i]);
    keys[i] = key;
    lo = key < lo ? key : lo;
    hi = key > hi ? key : hi;
  }
  // The candidates are the keys in lo..hi; `want` of them are to be taken, and everything above them.
  uint32_t want = TOPK;
  const uint32_t* from = keys;
  int size = n;
  bool tied;
  for (;;) {
    const int bits = 32 - __builtin_clz((hi - lo) | 1u);
    const int shift = bits > INTERVAL_BITS ? bits - INTERVAL_BITS : 0;
    memset(count, 0, sizeof(uint32_t) << INTERVAL_BITS);
    for (int i = 0; i < size; ++i) ++count[(from[i] - lo) >> shift];
    uint32_t b = (hi - lo) >> shift;
    while (count[b] < want) want -= count[b--];
    lo += b << shift;
    tied = count[b] != want;
    if (!tied || shift == 0) break;
    const uint32_t width = (1u << shift) - 1;
    hi = hi - lo < width ? hi : lo + width;
    size = keep_between(from, size, lo, hi, candidates);
    from = candidates;
  }
  // Keys from lo on, or, where more keys than needed equal it, the first `want` of those and all above. The unused last
  // write of an iteration stays within TOPK entries, since each loop ends when it has taken its last one.
  int taken = 0, i = 0;
  if (tied)
    for (; want > 0; ++i) {
      out[taken] = i;
      taken += keys[i] >= lo;
      want -= keys[i] == lo;
    }
  for (; taken < TOPK; ++i) {
    out[taken] = i;
    taken += tied ? keys[i] > lo : keys[i] >= lo;
  }
}

template <int S, int TOPK>
inline void topk_select(const Call& c, int tokens, const float* scores, size_t s_token, int position, int32_t* out, int o_token) {
  for (int t = 0; t < tokens; ++t, scores += s_token, out += o_token) {
    const int n = position + t + 1 < S ? position + t + 1 : S;
    if (n <= TOPK) {
      for (int i = 0; i < TOPK; ++i) out[i] = i < n ? i : -1;
    } else {
      c.scratch->norm_x = nullptr;
      select_row<TOPK>(scores, n, out, reinterpret_cast<uint32_t*>(c.scratch->base));
    }
  }
}
