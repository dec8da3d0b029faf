// cache_append: cache[position + t] = x[t], rounded to the cache's type. `cache` points at the first column written.
//
// Rows past the end of the cache are dropped, and so are those that another device's cache holds.
#pragma once

template <class Shard, class E>
inline void cache_append(int tokens, int W, Shard shard, E* cache, size_t cache_stride, int rows, const float* x,
                         int x_stride, int position) {
  for (int t = 0; t < tokens; ++t) {
    const int row = shard.rows(position + t);
    if (row >= rows || row == shard.rows(position + t + 1)) continue;
    E* out = cache + size_t(row) * cache_stride;
    const float* in = x + t * x_stride;
    each_block(0, W, [&](int i, int n) { store_n(out + i, load_n(in + i, n), n); });
  }
}
