// topk_candidates: the TOPK largest scores of a shard of the context (all, if there are fewer) as keys of 64 bits, in
// the order of positions; the other entries of the K are zero.
//
// A key is (order_key(score) << 32) | ~position, in two words, the low one first.
#pragma once

template <int S, int TOPK, int K, class Shard>
inline void topk_candidates(const Call& c, int tokens, Shard shard, const float* scores, size_t s_token,
                            int position, uint32_t* keys, int k_token) {
  for (int t = 0; t < tokens; ++t, scores += s_token, keys += k_token) {
    const int seen = position + t + 1, all = shard.rows(seen), n = all < S ? all : S;
    const int count = seen <= TOPK ? 0 : n < TOPK ? n : TOPK;
    // The chosen rows are written to the first words, then converted to keys in place, from the last on.
    int32_t* rows = reinterpret_cast<int32_t*>(keys);
    if (count > 0 && n > TOPK) {
      c.scratch->norm_x = nullptr;
      select_row<TOPK>(scores, n, rows, reinterpret_cast<uint32_t*>(c.scratch->base));
    } else {
      for (int i = 0; i < count; ++i) rows[i] = i;
    }
    for (int i = count - 1; i >= 0; --i) {
      const int row = rows[i];
      keys[KEY_WORDS * i] = ~uint32_t(shard.position(row));
      keys[KEY_WORDS * i + 1] = order_key(scores[row]);
    }
    memset(keys + KEY_WORDS * count, 0, size_t(K - count) * KEY_WORDS * sizeof(uint32_t));
  }
}
