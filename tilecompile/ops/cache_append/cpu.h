// cache_append: cache[position + t] = x[t], rounded to the cache's type. `cache` points at the first column written.
//
// A step may carry more tokens than its prompt has left; rows past the end of the cache are dropped.
#pragma once

template <int T, int W, class E>
inline void cache_append(E* cache, size_t cache_stride, int rows, const float* x, int x_stride, int position) {
  for (int t = 0; t < T && position + t < rows; ++t) {
    E* out = cache + size_t(position + t) * cache_stride;
    const float* in = x + t * x_stride;
    each_block(0, W, [&](int i, int n) { store_n(out + i, load_n(in + i, n), n); });
  }
}
