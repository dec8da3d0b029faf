// mla_attention: for each head the softmax of its scores with the selected cache rows, times their latents.
//
// Two passes over the rows, which are gathered straight from the cache: scores of all heads, then, after the softmax,
// the weighted sums. Blocks of rows (or columns) and heads share their loads in registers. Orders of summation, which
// depend on neither the tile nor the blocks: a score is 16 sums over latent and rotated key, element i in sum i mod 16
// of either, then lane_sum; the softmax's denominator is 16 sums over the rows, then lane_sum; an output adds rows as
// selected.
#pragma once

constexpr int ROWS = 8;  // rows whose scores are computed together: with four heads they fit the L1 cache
constexpr int DOT_ROWS = LANES == 16 ? 4 : LANES == 8 ? 2 : 1;  // sums held in registers by the first pass …
constexpr int DOT_HEADS = LANES == 16 ? 4 : 2;
constexpr int SUM_HEADS = LANES == 16 ? 6 : LANES == 8 ? 5 : 2;  // … and by the second
constexpr int SUM_BLOCKS = LANES == 16 ? 4 : 1;
constexpr int AHEAD = 8;  // rows that the second pass prefetches ahead

// Calls body.operator()<N>(first head) for nearly equal groups of at most MOST heads.
template <int MOST, class Body>
inline void head_groups(int heads, Body&& body) {
  for (Block b(heads, MOST); b.size > 0; b.advance())
    [&]<int... N>(std::integer_sequence<int, N...>) {
      ((b.size == N + 1 ? body.template operator()<N + 1>(b.begin) : void()), ...);
    }(std::make_integer_sequence<int, MOST>());
}

// What a head's query consists of, and the strides between heads.
struct Query {
  const float* latent;
  const float* rope;
  int latent_stride, rope_stride;
};

// sum[h * 4 + r] = products of HEADS queries with N rows, lane by lane; `ahead` are rows to bring into the cache.
template <int HEADS, int N, int R, int P, class E>
INLINE void dot_rows(const Query& q, const E* const* rows, const E* const* ahead, v16* sum) {
  v16 s[HEADS][N];
  repeat<HEADS * N>([&](int i) INLINED { s[i / N][i % N] = zero(); });
  const auto add = [&](const float* query, int stride, int column, int n) INLINED {
    v16 x[N];
    repeat<N>([&](int r) INLINED {
      prefetch(ahead[r] + column);
      x[r] = load_n(rows[r] + column, n);
    });
    repeat<HEADS>([&](int h) INLINED {
      const v16 y = load_n(query + h * stride, n);
      repeat<N>([&](int r) INLINED { s[h][r] = fma(x[r], y, s[h][r]); });
    });
  };
  each_block(0, R, [&](int d, int n) INLINED { add(q.latent + d, q.latent_stride, d, n); });
  each_block(0, P, [&](int d, int n) INLINED { add(q.rope + d, q.rope_stride, R + d, n); });
  repeat<HEADS * N>([&](int i) INLINED { sum[i / N * 4 + i % N] = s[i / N][i % N]; });
}

// Scaled scores of HEADS heads with 4 rows, to score[h * pitch + r].
template <int HEADS, int R, int P, class E>
inline void score_rows(const Query& q, const E* const* rows, const E* const* ahead, float scale, float* score,
                       int pitch) {
  v16 sum[16];
  for (int i = 4 * HEADS; i < 16; ++i) sum[i] = zero();
  constexpr int WHOLE = HEADS / DOT_HEADS * DOT_HEADS;
  for (int r = 0; r < 4; r += DOT_ROWS) {
    for (int h = 0; h < WHOLE; h += DOT_HEADS) {
      const Query part{q.latent + h * q.latent_stride, q.rope + h * q.rope_stride, q.latent_stride, q.rope_stride};
      dot_rows<DOT_HEADS, DOT_ROWS, R, P>(part, rows + r, ahead + r, sum + h * 4 + r);
    }
    if constexpr (HEADS > WHOLE) {
      const Query part{q.latent + WHOLE * q.latent_stride, q.rope + WHOLE * q.rope_stride, q.latent_stride,
                       q.rope_stride};
      dot_rows<HEADS - WHOLE, DOT_ROWS, R, P>(part, rows + r, ahead + r, sum + WHOLE * 4 + r);
    }
  }
  alignas(64) float t[16];
  store(t, lane_sums(sum) * splat(scale));
  for (int h = 0; h < HEADS; ++h) memcpy(score + h * pitch, t + 4 * h, 16);
}

// Turns n scores into e^(score - largest); entries up to the next multiple of 16 become zero or almost zero. Returns
// their sum.
inline float exponentials(float* score, int n, float& max) {
  for (int j = n; j % 16 != 0; ++j) score[j] = -INFINITY;
  v16 largest = load(score);
  for (int j = 16; j < n; j += 16) largest = maximum(largest, load(score + j));
  max = lane_max(largest);
  const v16 shift = splat(max);
  v16 sum = zero();
  for (int j = 0; j < n; j += 16) {
    const v16 e = exp(load(score + j) - shift);
    store(score + j, e);
    sum = sum + e;
  }
  return lane_sum(sum);
}

// Outputs of HEADS heads in COLUMNS columns of the rows, from those at `cache` on.
template <int HEADS, int COLUMNS, bool PREFETCH, class E>
inline void sum_rows(const float* weight, int pitch, const float* inverse, const E* cache, size_t row,
                     const int32_t* selected, int n, float* y, int y_head) {
  constexpr int BLOCKS = (COLUMNS + 15) / 16;
  v16 s[HEADS][BLOCKS];
  repeat<HEADS * BLOCKS>([&](int i) INLINED { s[i / BLOCKS][i % BLOCKS] = zero(); });
  for (int j = 0; j < n; ++j) {
    const E* x = cache + size_t(selected[j]) * row;
    if constexpr (PREFETCH) {
      const E* next = cache + size_t(selected[j + AHEAD < n ? j + AHEAD : n - 1]) * row;
      for (int i = 0; i < COLUMNS; i += int(64 / sizeof(E))) prefetch(next + i);
    }
    v16 v[BLOCKS];
    repeat<BLOCKS>([&](int b) INLINED { v[b] = load_n(x + 16 * b, COLUMNS - 16 * b); });
    repeat<HEADS>([&](int h) INLINED {
      const v16 w = splat(weight[h * pitch + j]);
      repeat<BLOCKS>([&](int b) INLINED { s[h][b] = fma(w, v[b], s[h][b]); });
    });
  }
  repeat<HEADS * BLOCKS>([&](int i) INLINED {
    const int h = i / BLOCKS, b = i % BLOCKS;
    store_n(y + h * y_head + 16 * b, s[h][b] * splat(inverse[h]), COLUMNS - 16 * b);
  });
}

// How many rows are selected: those before the first -1.
inline int selected_rows(const int32_t* selection, int size) {
  int lo = 0;
  while (lo < size) {
    const int middle = (lo + size) / 2;
    if (selection[middle] < 0)
      size = middle;
    else
      lo = middle + 1;
  }
  return lo;
}

// PART: of a shard of the context, as y[t][h] = [sums of latents, largest score, denominator].
template <int R, int P, int TOPK, bool PART, class E>
inline void mla_attention(const Call& c, int tokens, const float* q_latent, int ql_token, int ql_head, const float* q_rope,
                          int qr_token, int qr_head, const E* cache, size_t row, const int32_t* selection, int s_token,
                          int position, float scale, float* y, int y_token, int y_head) {
  constexpr int PITCH = (TOPK + 15) / 16 * 16 + 16;  // a cache line more, lest the heads' weights share cache sets
  const int head = c.tile(0), heads = c.tile(1) - head;
  float* scores = reinterpret_cast<float*>(c.scratch->base);
  float* inverse = scores + heads * PITCH;
  c.scratch->norm_x = nullptr;
  for (int t = 0; t < tokens; ++t) {
    const int32_t* selected = selection + t * s_token;
    const int n = PART ? selected_rows(selected, TOPK) : position + t + 1 < TOPK ? position + t + 1 : TOPK;
    if (PART && n == 0) {
      for (int h = head; h < head + heads; ++h) memset(y + t * y_token + h * y_head, 0, (R + 2) * sizeof(float));
      continue;
    }
    const auto address = [&](int j) { return cache + size_t(selected[j < n ? j : n - 1]) * row; };

    const E *rows[ROWS], *next[ROWS];  // after the last row, the last one is repeated
    for (int r = 0; r < ROWS; ++r) next[r] = address(r);
    for (int j = 0; j < n; j += ROWS) {
      for (int r = 0; r < ROWS; ++r) rows[r] = next[r], next[r] = address(j + ROWS + r);
      const int groups = (heads + 3) / 4;
      int group = 0;
      head_groups<4>(heads, [&]<int HEADS>(int h) {
        const Query q{q_latent + t * ql_token + (head + h) * ql_head, q_rope + t * qr_token + (head + h) * qr_head,
                      ql_head, qr_head};
        const E* ahead[ROWS];  // each group of heads brings in some of the next rows; the others are there already
        for (int r = 0; r < ROWS; ++r) ahead[r] = r % groups == group ? next[r] : rows[r];
        ++group;
        for (int r = 0; r < ROWS && j + r < n; r += 4)
          score_rows<HEADS, R, P>(q, rows + r, ahead + r, scale, scores + h * PITCH + j + r, PITCH);
      });
    }

    for (int h = 0; h < heads; ++h) {
      float max;
      const float sum = exponentials(scores + h * PITCH, n, max);
      inverse[h] = PART ? 1.f : 1.f / sum;
      if constexpr (PART) {
        float* end = y + t * y_token + (head + h) * y_head + R;
        end[0] = max, end[1] = sum;
      }
    }

    const auto columns = [&]<int COLUMNS>(int column) {
      head_groups<SUM_HEADS>(heads, [&]<int HEADS>(int h) {
        float* to = y + t * y_token + (head + h) * y_head + column;
        const float* w = scores + h * PITCH;
        if (h == 0)
          sum_rows<HEADS, COLUMNS, true>(w, PITCH, inverse + h, cache + column, row, selected, n, to, y_head);
        else
          sum_rows<HEADS, COLUMNS, false>(w, PITCH, inverse + h, cache + column, row, selected, n, to, y_head);
      });
    };
    constexpr int WIDTH = 16 * SUM_BLOCKS, LAST = R % WIDTH;
    for (int column = 0; column + WIDTH <= R; column += WIDTH) columns.template operator()<WIDTH>(column);
    if constexpr (LAST != 0) columns.template operator()<LAST>(R - LAST);
  }
}
