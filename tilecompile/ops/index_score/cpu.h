// index_score: score[t][s] = sum_h weight[t][h] * relu(query[t][h] . cache[s]), one block of positions for all tokens.
//
// The keys are the traffic, so each is read once for all heads and tokens: 32 keys at a time are transposed into
// scratch memory as [D][32], then a lane is a position and the queries are broadcast. Every dot product is one sum over
// d in ascending order, and the heads are added in ascending order: bits depend on neither the block nor the other
// tokens.
#pragma once


// The first n keys of `rows` (missing ones as zero) to `out`, as [D][SCORE_KEYS]. Half of the next keys, those at `ahead`,
// are brought into the cache meanwhile; add_heads fetches the other half, so that the memory always has something to
// do.
template <int D, class E>
inline void transpose_keys(const E* rows, size_t stride, int n, const E* ahead, float* out) {
  for (int g = 0; g < SCORE_KEYS; g += 16)
    each_block(0, D, [&](int d, int width) INLINED {
      v16 m[16];
      repeat<16>([&](int r) INLINED {
        m[r] = g + r < n ? load_n(rows + size_t(g + r) * stride + d, width) : zero();
        if (r % 2 == 0) prefetch(ahead + size_t((g + r) / 2) * stride + d);
      });
      transpose(m);
      for (int i = 0; i < width; ++i) store(out + (d + i) * SCORE_KEYS + g, m[i]);
    });
}

// Adds heads 0..HEADS of one token to the scores of 32 keys, bringing the D * SCORE_KEYS / 2
// elements at `ahead` into the cache meanwhile.
template <int HEADS, int D, bool PREFETCH, class E>
inline void add_heads(const float* query, int q_head, const float* weight, const float* keys, const E* ahead,
                      v16 (&score)[2]) {
  v16 dot[HEADS][2];
  repeat<HEADS>([&](int h) INLINED { dot[h][0] = dot[h][1] = zero(); });
  for (int d = 0; d < D; ++d) {
    if constexpr (PREFETCH)
      prefetch(ahead + d * (SCORE_KEYS / 2));
    const v16 k0 = load(keys + d * SCORE_KEYS), k1 = load(keys + d * SCORE_KEYS + 16);
    repeat<HEADS>([&](int h) INLINED {
      const v16 q = splat(query[h * q_head + d]);
      dot[h][0] = fma(q, k0, dot[h][0]);
      dot[h][1] = fma(q, k1, dot[h][1]);
    });
  }
  repeat<HEADS>([&](int h) INLINED {
    score[0] = fma(splat(weight[h]), relu(dot[h][0]), score[0]);
    score[1] = fma(splat(weight[h]), relu(dot[h][1]), score[1]);
  });
}

template <int H, int D, int TOPK, class Shard, class E>
inline void index_score(const Call& c, int tokens, Shard shard, const float* query, int q_token, int q_head,
                        const float* weight, int w_token, const E* cache, size_t row, int position, float* scores, size_t s_token) {
  constexpr int HEADS = LANES == 16 ? 8 : LANES == 8 ? 3 : 1;  // as many as the registers hold the sums of
  const int first = position < TOPK ? TOPK - position : 0;     // tokens before it see at most TOPK positions
  const int all = shard.rows(position + tokens), end = c.tile(1) < all ? c.tile(1) : all;
  if (first >= tokens) return;
  c.scratch->norm_x = nullptr;
  float* keys = reinterpret_cast<float*>(c.scratch->base);
  for (int s = c.tile(0); s < end; s += SCORE_KEYS) {
    const E* rows = cache + size_t(s) * row;
    const E* ahead = s + SCORE_KEYS < end ? rows + SCORE_KEYS * row : rows;
    transpose_keys<D>(rows, row, end - s, ahead, keys);
    for (int t = first; t < tokens; ++t) {
      const float* q = query + t * q_token;
      const float* w = weight + t * w_token;
      v16 score[2] = {zero(), zero()};
      int h = 0;
      if (t == first && HEADS <= H) {
        add_heads<HEADS, D, true>(q, q_head, w, keys, ahead + SCORE_KEYS / 2 * row, score);
        h = HEADS;
      }
      for (; h + HEADS <= H; h += HEADS) add_heads<HEADS, D, false>(q + h * q_head, q_head, w + h, keys, ahead, score);
      if constexpr (H % HEADS != 0) add_heads<H % HEADS, D, false>(q + h * q_head, q_head, w + h, keys, ahead, score);
      const int visible = shard.rows(position + t + 1), seen = visible < end ? visible : end;
      float* out = scores + t * s_token + s;
      for (int g = 0; g < 2; ++g) store_n(out + 16 * g, score[g], seen - s - 16 * g);
    }
  }
}
