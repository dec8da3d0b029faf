// embed: y[t] = table[ids[t]] as floats, columns begin..end. Ids are rows of the table: the ids of a
// request are checked, and argmax returns no others.
#pragma once

template <class E>
inline void embed(int tokens, const int32_t* ids, int ids_stride, const E* table, size_t table_stride, float* y, int y_stride,
                  int begin, int end) {
  for (int t = 0; t < tokens; ++t) {
    const E* row = table + size_t(ids[t * ids_stride]) * table_stride;
    float* out = y + t * y_stride;
    each_block(begin, end, [&](int i, int n) { store_n(out + i, load_n(row + i, n), n); });
  }
}
