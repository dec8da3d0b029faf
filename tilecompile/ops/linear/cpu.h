// linear: y[t][n] = epilogue(sum_k w[n][k] * x[t][k]), one tile of rows for all tokens.
//
// A tile is a stream of panels [K][16 rows], in bf16 [K / 2][16 rows][2]; with two weights their panels alternate. Each
// lane is one row: the activation is broadcast, so neither K nor the reduction needs padding. Every row is summed in the
// same order, whatever the tile, the number of tokens or the instruction set: four partial sums over k mod 4, then
// (0+1)+(2+3). Where blocks of columns have scales, that is the sum of a block; the sum of a row adds them up, each times
// its scale, in ascending order. The tokens take a panel in blocks, whose sums the registers hold; the first block brings
// it into the cache.
#pragma once

// Most tokens of a block: with their sums, the columns of weights that are taken at a time and an activation, the
// registers are full.
template <class W>
constexpr int BLOCK_TOKENS = LANES == 16 ? (SCALED<W> ? 6 : 7) : SCALED<W> ? 2 : 3;

// The columns of a tile: how many, and how far the first one is behind the start of its block of the matrix.
struct Columns {
  int count, phase;
};

// The panels of a tile in the order in which they are stored: where the next one is, and its scales.
template <class W>
struct Panels {
  const W* w;
  const float* scales;
  Columns columns;

  // Of a tile of `count` panels.
  INLINE Panels(const W* tile, int count, Columns columns) : w(tile), scales(nullptr), columns(columns) {
    if constexpr (SCALED<W>) {
      scales = reinterpret_cast<const float*>(tile);
      w = tile + (size_t(count) * head_scales() * sizeof(float) + 63) / 64 * 64 / sizeof(W);
    }
  }
  INLINE int head_scales() const { return Scaled<W>::head_scales(columns.count, columns.phase); }
  INLINE size_t size() const {
    if constexpr (SCALED<W>) return Scaled<W>::panel_bytes(columns.count) / sizeof(W);
    return size_t(columns.count) * PANEL;
  }
  INLINE void advance(int panels) {
    w += panels * size();
    if constexpr (SCALED<W>) scales += panels * head_scales();
  }
};

// The activations of some of a step's tokens, and which tokens they are.
struct Tokens {
  int count = 0;
  const float* x[MAX_TOKENS];
  int token[MAX_TOKENS];

  void add(const float* activations, int t) {
    x[count] = activations;
    token[count++] = t;
  }
  // The first n of activations that are `stride` floats apart.
  static Tokens first(int n, const float* x, int stride) {
    Tokens tokens;
    for (int t = 0; t < n; ++t) tokens.add(x + size_t(t) * stride, t);
    return tokens;
  }
};

// `panels` panels one after the other, each times B tokens, to out[panel][token]. `after` is what will be read after them,
// into which the prefetches run on; without it, what is stored after them. Nothing is prefetched for a block of tokens
// whose panels are in the cache already: `fetch`.
template <int B, class W>
[[gnu::noinline]] static void block_dot(Panels<W> of, const float* const* x, int panels, v16* out, bool fetch,
                                        const W* after) {
  const W* w = of.w;
  const int K = of.columns.count;
  constexpr int WIDTH = B == 1 ? PARTS : 1;  // registers of a column at a time; of several, the sums would be too many
  const int whole = K / 4 * 4, prefetched = int(PREFETCH_BYTES / (PANEL * sizeof(W)));
  const float* row[B];
  for (int t = 0; t < B; ++t) row[t] = x[t];
  for (; panels > 0; --panels, w += size_t(K) * PANEL, out += B) {
    const W* next = panels > 1 ? nullptr : after;
    for (int part = 0; part < PARTS; part += WIDTH) {
      vf s[B][4][WIDTH];
      repeat<B * 4 * WIDTH>([&](int i) INLINED { s[i / (4 * WIDTH)][i / WIDTH % 4][i % WIDTH] = vf{}; });
      const auto add_pair = [&](const W* at, int k, int q) INLINED {
        vf even[WIDTH], odd[WIDTH];
        repeat<WIDTH>([&](int p) INLINED { load_pair(at, part + p, even[p], odd[p]); });
        repeat<B * WIDTH>([&](int i) INLINED {
          const int t = i / WIDTH, p = i % WIDTH;
          s[t][q][p] = even[p] * row[t][k] + s[t][q][p];
          s[t][q + 1][p] = odd[p] * row[t][k + 1] + s[t][q + 1][p];
        });
      };
      const auto add_last = [&](int q) INLINED {
        repeat<WIDTH>([&](int p) INLINED {
          const vf last = load_part(w + (K - 1) * PANEL, part + p);
          repeat<B>([&](int t) INLINED { s[t][q][p] = last * row[t][K - 1] + s[t][q][p]; });
        });
      };
      const auto add_columns = [&](int begin, int end, const char* ahead) INLINED {
        const W* at = w + begin * PANEL;
        for (int k = begin; k < end; k += 4, at += 4 * PANEL) {
          if (ahead) {
            for (int b = 0; b < int(4 * PANEL * sizeof(W)); b += 64) prefetch(ahead + b);
            ahead += 4 * PANEL * sizeof(W);
          }
          repeat<2>([&](int pair) INLINED { add_pair(at + 2 * pair * PANEL, k + 2 * pair, 2 * pair); });
        }
      };
      if (B > 1 && (!fetch || part > 0)) {
        add_columns(0, whole, nullptr);
      } else {  // the last columns fetch what comes after the panel
        const int own = !next ? whole : whole > prefetched ? whole - prefetched : 0;
        add_columns(0, own, reinterpret_cast<const char*>(w) + PREFETCH_BYTES);
        add_columns(own, whole, reinterpret_cast<const char*>(next));
      }
      if (K % 4 >= 2) add_pair(w + whole * PANEL, whole, 0);
      if (K % 4 == 1) add_last(0);
      if (K % 4 == 3) add_last(2);
      repeat<B * WIDTH>([&](int i) INLINED {
        const auto sum = [&](int q) INLINED { return s[i / WIDTH][q][i % WIDTH]; };
        out[i / WIDTH].p[part + i % WIDTH] = (sum(0) + sum(1)) + (sum(2) + sum(3));
      });
    }
  }
}

// The same for a format with scales.
template <int B, class W>
[[gnu::noinline]] static void scaled_block_dot(Panels<W> of, const float* const* x, int panels, v16* out, bool fetch,
                                               const W* after) {
  using S = Scaled<W>;
  constexpr int WIDTH = B == 1 ? PARTS : 1;
  const int K = of.columns.count, whole = K / S::LINE * S::LINE;
  const int64_t bytes = of.size() * sizeof(W);
  const float* row[B];
  for (int t = 0; t < B; ++t) row[t] = x[t];
  for (; panels > 0; --panels, of.advance(1), out += B) {
    for (int part = 0; part < PARTS; part += WIDTH) {
      vf total[B][WIDTH] = {};
      for (int k = 0, block = 0; k < K; ++block) {
        const int last = (block + 1) * S::BLOCK - of.columns.phase, end = last < whole ? last : whole;
        const uint8_t* panel = reinterpret_cast<const uint8_t*>(of.w);
        const int64_t begin = S::line_at(k), done = begin + PREFETCH_BYTES;
        const bool within = panels > 1 || !after || done < bytes;
        const uint8_t* line = panel + begin;
        const uint8_t* ahead = within ? panel + done : reinterpret_cast<const uint8_t*>(after) + (done - bytes);
        vf s[B][4][WIDTH] = {};
        const auto add = [&](int columns) INLINED {
          repeat<S::LINE>([&](int q) INLINED {
            if (q < columns) {
              vf column[WIDTH];
              repeat<WIDTH>([&](int p) INLINED { column[p] = S::column(line, q, part + p); });
              repeat<B * WIDTH>([&](int i) INLINED {
                const int t = i / WIDTH, p = i % WIDTH;
                s[t][q % 4][p] = column[p] * row[t][k + q] + s[t][q % 4][p];
              });
            }
          });
        };
        const bool fetches = B == 1 || (fetch && part == 0);
        if (fetches && S::FRONT && k % S::GROUP == 0) prefetch(ahead - S::FRONT);
        for (; k < end; k += S::LINE, line += 64) {
          if (fetches) prefetch(ahead), ahead += 64;
          add(S::LINE);
        }
        if (k < K && k < last) {  // the columns that don't fill a line
          add(K - k);
          k = K;
        }
        repeat<B * WIDTH>([&](int i) INLINED {
          const auto sum = [&](int q) INLINED { return s[i / WIDTH][q][i % WIDTH]; };
          vf& to = total[i / WIDTH][i % WIDTH];
          to = ((sum(0) + sum(1)) + (sum(2) + sum(3))) * S::scale(panel, of.scales, block, part + i % WIDTH) + to;
        });
      }
      repeat<B * WIDTH>([&](int i) INLINED { out[i / WIDTH].p[part + i % WIDTH] = total[i / WIDTH][i % WIDTH]; });
    }
  }
}

// Either for B tokens, 1 to BLOCK_TOKENS.
template <class W>
inline void any_block_dot(int B, const Panels<W>& of, const float* const* x, int panels, v16* out, bool fetch,
                      const W* after) {
  const auto dot = [&](auto tokens) INLINED {
    if constexpr (SCALED<W>)
      scaled_block_dot<tokens()>(of, x, panels, out, fetch, after);
    else
      block_dot<tokens()>(of, x, panels, out, fetch, after);
  };
  [&]<int... N>(std::integer_sequence<int, N...>) {
    ((B == N + 1 ? dot(std::integral_constant<int, N + 1>()) : void()), ...);
  }(std::make_integer_sequence<int, BLOCK_TOKENS<W>>());
}

// Rows row_begin..row_end of N weights; `epilogue(acc, t, row, n)` gets the N results of 16 rows and token t, and stores
// them. `after` is what will be read after the tile; without it, what is stored after the tile. Where all tokens are one
// block, it takes several panels at a time; else each panel stays in the cache until all blocks have taken it.
template <int N, class W, class Epilogue>
inline void linear_rows(Panels<W>& of, const Tokens& tokens, int row_begin, int row_end, Epilogue&& epilogue,
                        const W* after = nullptr) {
  constexpr int MOST = BLOCK_TOKENS<W>, ROOM = N * MOST > 16 ? N * MOST : 16;
  by_tokens(tokens.count, [&](auto count) INLINED {
    const int most = count == 0 || count > MOST ? 1 : ROOM / (N * count);
    for (int row = row_begin, panels; row < row_end; row += panels * PANEL, of.advance(N * panels)) {
      panels = (row_end - row + PANEL - 1) / PANEL;
      if (panels > most) panels = most;
      const W* next = row + panels * PANEL < row_end ? nullptr : after;
      for (Block b(count, MOST); b.size > 0; b.advance()) {
        v16 acc[ROOM];
        any_block_dot(b.size, of, tokens.x + b.begin, N * panels, acc, b.begin == 0, next);
        const v16* sum = acc;
        for (int p = 0, at = row; p < panels; ++p, at += PANEL, sum += N * b.size)
          for (int t = 0; t < b.size; ++t) {
            v16 a[N];
            for (int m = 0; m < N; ++m) a[m] = sum[m * b.size + t];
            epilogue(a, tokens.token[b.begin + t], at, row_end - at < PANEL ? row_end - at : PANEL);
          }
      }
    }
  });
}

// The same for a tile that has these rows and no others.
template <int N, class W, class Epilogue>
inline void linear_rows(const W* tile, const Tokens& tokens, Columns columns, int row_begin, int row_end,
                        Epilogue&& epilogue, const W* after = nullptr) {
  Panels<W> of(tile, (row_end - row_begin + PANEL - 1) / PANEL * N, columns);
  linear_rows<N>(of, tokens, row_begin, row_end, epilogue, after);
}
