// topk_merge: which candidates of a shard belong to the TOPK largest keys of all shards, as rows of the shard's cache.
//
// The TOPK-th largest key is found as in topk_select, by histograms over the range of what is left. Keys that count are
// distinct, so the last interval holds exactly the selected ones.
#pragma once

// The want-th largest of `size` keys, of which at least that many are distinct and not zero; the keys are overwritten.
inline uint64_t nth_key(uint64_t* keys, int size, uint32_t want, uint32_t* count) {
  uint64_t lo = ~0ull, hi = 0;
  for (int i = 0; i < size; ++i) {
    lo = keys[i] < lo ? keys[i] : lo;
    hi = keys[i] > hi ? keys[i] : hi;
  }
  for (;;) {
    const int bits = 64 - __builtin_clzll((hi - lo) | 1u);
    const int shift = bits > INTERVAL_BITS ? bits - INTERVAL_BITS : 0;
    memset(count, 0, sizeof(uint32_t) << INTERVAL_BITS);
    for (int i = 0; i < size; ++i) ++count[(keys[i] - lo) >> shift];
    uint64_t b = (hi - lo) >> shift;
    while (count[b] < want) want -= count[b--];
    lo += b << shift;
    if (count[b] == want || shift == 0) return lo;
    const uint64_t width = (1ull << shift) - 1;
    hi = hi - lo < width ? hi : lo + width;
    int kept = 0;
    for (int i = 0; i < size; ++i) {
      const uint64_t key = keys[i];
      keys[kept] = key;
      kept += key - lo <= hi - lo;
    }
    size = kept;
  }
}

template <int SHARDS, int ROOM, int TOPK, int K, class Shard>
inline void topk_merge(const Call& c, int tokens, Shard shard, const uint32_t* keys, size_t k_token, int position,
                       int32_t* out, int o_token) {
  for (int t = 0; t < tokens; ++t, keys += k_token, out += o_token) {
    const int seen = position + t + 1;
    int taken = 0;
    if (seen <= TOPK) {
      for (const int n = shard.rows(seen); taken < n; ++taken) out[taken] = taken;
    } else {
      c.scratch->norm_x = nullptr;
      uint64_t* all = reinterpret_cast<uint64_t*>(c.scratch->base);
      memcpy(all, keys, size_t(SHARDS) * ROOM * sizeof(uint64_t));
      const uint64_t least = nth_key(all, SHARDS * ROOM, TOPK, reinterpret_cast<uint32_t*>(all + SHARDS * ROOM));
      const uint32_t* own = keys + size_t(shard.index) * ROOM * KEY_WORDS;
      for (int i = 0; i < ROOM; ++i) {
        const uint64_t key = uint64_t(own[KEY_WORDS * i + 1]) << 32 | own[KEY_WORDS * i];
        if (key >= least) out[taken++] = shard.rows(int(~own[KEY_WORDS * i]));
      }
    }
    for (; taken < K; ++taken) out[taken] = -1;
  }
}
