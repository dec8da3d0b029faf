// linear: y[t][n] = epilogue(sum_k w[n][k] * x[t][k]), one tile of rows for all tokens, and what the other ops that stream
// weights build on.
//
// Weights come from the ring in fragment order (targets/cuda/fragments.py): panels of 16 rows in k-blocks of 512 bytes, of which a lane
// takes 16. They are the first operand of mma.m16n8k16, tokens the second, so up to eight tokens cost what one costs.
// Activations are staged in shared memory once, as 16-bit numbers in the order of the second operand: for bf16 weights as
// bf16, for fp8 weights as f16, scaled by a power of two that brings the token's largest to 2^14. As one such number they
// would be the largest error by far, so what it leaves of them is staged too, in a column of its own, which up to four
// tokens costs nothing. Of f16 that is stored in one byte, the upper one of another f16: for eight tokens there is no room
// for more.
//
// The order of every sum is fixed. k-block b of a panel belongs to partial sum b mod 8, in ascending order; which warp
// computes it makes no difference. The eight are added as ((0+1)+(2+3)) + ((4+5)+(6+7)), and then the sums of the high and
// the low parts of the activations. So a token's bits depend neither on the tile nor on other tokens.
//
// Of the tokens that a step doesn't carry nothing is read or written: their columns of the second operand are what scratch
// memory holds, and their sums are dropped.
#pragma once

namespace tc {

constexpr int SLOT_BLOCKS = SLOT / FRAGMENT_BYTES;
static_assert(RESIDUES == CONSUMER_WARPS && SLOT % FRAGMENT_BYTES == 0);

// A lane's part of a k-block of activations as the second operand takes it, two neighbours in a word: `High`, and `Low`,
// what those leave, as it is stored. `rest` is what a packed number leaves of x.
struct Bf16 {
  static constexpr int COLS = FRAGMENT_COLS_BF16;
  static constexpr bool SCALED = false;
  struct High {
    uint32_t b[2];
  };
  using Low = High;
  TC_DEVICE static uint32_t pack(float first, float second) { return pack_bf16(first, second); }
  TC_DEVICE static void put_low(Low* to, int word, float first, float second) { to->b[word] = pack(first, second); }
  TC_DEVICE static High low(const Low& from) { return from; }
  TC_DEVICE static float rest(float x, uint32_t packed, int half) {
    return x - __uint_as_float(half ? packed & 0xffff0000u : packed << 16);
  }
};
struct Fp8 {
  static constexpr int COLS = FRAGMENT_COLS_FP8;
  static constexpr bool SCALED = true;
  struct High {
    uint32_t b[4];
  };
  struct Low {
    uint32_t b[2];
  };
  TC_DEVICE static uint32_t pack(float first, float second) { return pack_f16(first, second); }
  TC_DEVICE static void put_low(Low* to, int word, float first, float second) {
    const uint32_t x = pack(first, second);
    const uint32_t a = (x & 0xffff) + 0x7f + (x >> 8 & 1), b = (x >> 16) + 0x7f + (x >> 24 & 1);  // to nearest even
    reinterpret_cast<uint16_t*>(to)[word] = uint16_t((a >> 8 & 0xff) | (b & 0xff00));
  }
  TC_DEVICE static High low(const Low& from) {
    const uint32_t x = from.b[0], y = from.b[1];
    return {{(x & 0xff) << 8 | (x & 0xff00) << 16, (x >> 8 & 0xff00) | (x & 0xff000000), (y & 0xff) << 8 | (y & 0xff00) << 16,
             (y >> 8 & 0xff00) | (y & 0xff000000)}};
  }
  TC_DEVICE static float rest(float x, uint32_t packed, int half) { return x - f32_of_f16(uint16_t(packed >> 16 * half)); }
};

// A product's shape: type of the weights, tokens, columns, weights whose panels alternate, and the offset of the
// first column in its block of SCALE_BLOCK columns.
template <class Weight, int Tokens, int Cols, int Weights, int Phase>
struct Shape {
  using W = Weight;
  static constexpr int T = Tokens, K = Cols, N = Weights, PHASE = Phase;
  static constexpr int BLOCKS = (K + W::COLS - 1) / W::COLS;          // of a panel
  static constexpr int COLUMNS = 2 * T;                               // of the second operand
  static constexpr int PRODUCTS = (COLUMNS + 7) / 8;                  // second operands
  static constexpr int SCALES = W::SCALED ? (PHASE + K + SCALE_BLOCK - 1) / SCALE_BLOCK : 0;  // of a panel
  static constexpr int HIGH_BYTES = BLOCKS * T * 4 * sizeof(typename W::High);
  static constexpr int LOW_BYTES = BLOCKS * T * 4 * sizeof(typename W::Low);
  static constexpr int PANEL_BYTES = RESIDUES * COLUMNS * PANEL * 4;  // of partial sums
  static constexpr int GROUPS = PARTIAL_BYTES / (N * PANEL_BYTES) > 1 ? PARTIAL_BYTES / (N * PANEL_BYTES) : 1;
  static_assert(PHASE % 16 == 0 && T <= BODY_TOKENS);

  // Scratch memory, in this order; then scales and the op's own memory a panel, as the largest tile needs.
  static constexpr int SUMS = 0;        // 2 x [warps][T]
  static constexpr int UNSCALE = 512;   // [T]
  static constexpr int HIGH = 576;      // [BLOCKS][T][4 lanes]
  static constexpr int LOW = HIGH + HIGH_BYTES;       // [BLOCKS][T][4 lanes]
  static constexpr int PARTIAL = LOW + LOW_BYTES;     // [GROUPS][N][RESIDUES][COLUMNS][PANEL]
  static constexpr int FIXED = PARTIAL + GROUPS * N * PANEL_BYTES;
  TC_DEVICE static int head_blocks(int panels) { return (panels * SCALES * 4 + FRAGMENT_BYTES - 1) / FRAGMENT_BYTES; }
};

// The sum and the maximum over all consumers of what each has for a token, in a fixed order.
template <class S>
TC_DEVICE void over_threads(const Call& c, float (&sum)[S::T], float (&most)[S::T]) {
  float* sums = reinterpret_cast<float*>(c.scratch + S::SUMS);
  float* mosts = sums + CONSUMER_WARPS * S::T;
  const int n = c.tokens<S::T>();
  TC_UNROLL for (int t = 0; t < S::T; ++t) {
    if (t >= n) continue;
    TC_UNROLL for (int m = 16; m > 0; m /= 2) {
      sum[t] += shuffle_xor(sum[t], m);
      most[t] = fmaxf(most[t], shuffle_xor(most[t], m));
    }
    if (c.lane() == 0) {
      sums[c.warp() * S::T + t] = sum[t];
      mosts[c.warp() * S::T + t] = most[t];
    }
  }
  body_barrier();
  TC_UNROLL for (int t = 0; t < S::T; ++t) {
    sum[t] = most[t] = 0.f;
    if (t >= n) continue;
    TC_UNROLL for (int w = 0; w < CONSUMER_WARPS; ++w) {
      sum[t] += sums[w * S::T + t];
      most[t] = fmaxf(most[t], mosts[w * S::T + t]);
    }
  }
}

// Stages the activations x[t][k], normed if NORM: x / sqrt(mean(x^2) + eps) * norm.
template <class S, bool NORM>
TC_DEVICE void stage(const Call& c, const float* x, int stride, const float* norm, float eps) {
  using W = typename S::W;
  constexpr int T = S::T, K = S::K;
  const int n = c.tokens<T>();
  float factor[T];
  TC_UNROLL for (int t = 0; t < T; ++t) factor[t] = 1.f;
  if constexpr (NORM || W::SCALED) {
    float sum[T], most[T];
    TC_UNROLL for (int t = 0; t < T; ++t) {
      sum[t] = most[t] = 0.f;
      if (t >= n) continue;
      for (int k = c.thread; k < K; k += CONSUMERS) {
        const float v = x[t * stride + k];
        if (NORM) sum[t] += v * v;
        if (W::SCALED) most[t] = fmaxf(most[t], fabsf(NORM ? v * norm[k] : v));
      }
    }
    over_threads<S>(c, sum, most);
    TC_UNROLL for (int t = 0; t < T; ++t) {
      if (t >= n) continue;
      if (NORM) factor[t] = 1.f / sqrtf(sum[t] / float(K) + eps);
      if (W::SCALED) {
        const uint32_t e = __float_as_uint(most[t] * factor[t]) >> 23 & 255;
        const uint32_t up = e == 255 ? 127 : e < 20 ? 248 : 268 - e;  // 2^(up - 127) is the scale
        factor[t] *= __uint_as_float(up << 23);
        if (c.thread == t) reinterpret_cast<float*>(c.scratch + S::UNSCALE)[t] = __uint_as_float((254 - up) << 23);
      }
    }
  }
  constexpr int PAIRS = S::BLOCKS * W::COLS / 2;
  auto* high = reinterpret_cast<typename W::High*>(c.scratch + S::HIGH);
  auto* low = reinterpret_cast<typename W::Low*>(c.scratch + S::LOW);
  TC_UNROLL for (int t = 0; t < T; ++t) {
    if (t >= n) continue;
    for (int i = c.thread; i < PAIRS; i += CONSUMERS) {
      float v[2];
      TC_UNROLL for (int half = 0; half < 2; ++half) {
        const int k = 2 * i + half;
        v[half] = k < K ? x[t * stride + k] * factor[t] : 0.f;
        if (NORM && k < K) v[half] *= norm[k];
      }
      const int block = 2 * i / W::COLS, in = 2 * i % W::COLS, word = in / 16 * 2 + in % 16 / 8;
      const int at = (block * T + t) * 4 + in % 8 / 2;
      const uint32_t packed = W::pack(v[0], v[1]);
      high[at].b[word] = packed;
      W::put_low(low + at, word, W::rest(v[0], packed, 0), W::rest(v[1], packed, 1));
    }
  }
  body_barrier();
}

// The k-blocks of a weight run, which every warp walks through in ascending order.
struct Blocks {
  const Call& c;
  int begin = 0;
  const char* slot;

  TC_DEVICE explicit Blocks(const Call& call) : c(call), slot(call.ring.wait()) {}
  TC_DEVICE const char* at(int i) {
    while (i >= begin + SLOT_BLOCKS) {
      c.ring.release();
      slot = c.ring.wait();
      begin += SLOT_BLOCKS;
    }
    return slot + (i - begin) * FRAGMENT_BYTES;
  }
  TC_DEVICE void end(int count) {
    at(count - 1);
    c.ring.release();
  }
};

// The lane's part of a k-block's products with the staged activations: added to `acc`, as the fragments of 16 x 8 sums.
template <class S>
TC_DEVICE void add_block(float (&acc)[S::PRODUCTS][4], const char* block, const Call& c, int b, const float* scales) {
  using W = typename S::W;
  const uint4 w = *reinterpret_cast<const uint4*>(block + c.lane() * 16);
  const auto* high = reinterpret_cast<const typename W::High*>(c.scratch + S::HIGH) + b * S::T * 4 + c.lane();
  const auto* low = reinterpret_cast<const typename W::Low*>(c.scratch + S::LOW) + (b - 1) * S::T * 4 + c.lane();
  TC_UNROLL for (int p = 0; p < S::PRODUCTS; ++p) {
    const int column = p * 8 + c.lane() / 4;
    typename W::High x = {};
    if (column < S::T)
      x = high[p * 32];
    else if (column < S::COLUMNS)
      x = W::low(low[p * 32]);
    if constexpr (W::SCALED) {
      const uint32_t first[4] = {f16_of_e4m3(w.x), f16_of_e4m3(w.x >> 16), f16_of_e4m3(w.y), f16_of_e4m3(w.y >> 16)};
      const uint32_t second[4] = {f16_of_e4m3(w.z), f16_of_e4m3(w.z >> 16), f16_of_e4m3(w.w), f16_of_e4m3(w.w >> 16)};
      const uint32_t x0[2] = {x.b[0], x.b[1]}, x1[2] = {x.b[2], x.b[3]};
      float sum[4] = {}, other[4] = {};
      mma_f16(sum, first, x0);
      const float scale = scales[(S::PHASE + b * W::COLS) / SCALE_BLOCK];
      if constexpr (S::PHASE % W::COLS == 0) {
        mma_f16(sum, second, x1);
        TC_UNROLL for (int i = 0; i < 4; ++i) acc[p][i] += scale * sum[i];
      } else {  // a block of scales may end within the k-block, and with it the panel's last
        const int at = (S::PHASE + b * W::COLS + W::COLS / 2) / SCALE_BLOCK;
        const float next = scales[at < S::SCALES ? at : S::SCALES - 1];
        mma_f16(other, second, x1);
        TC_UNROLL for (int i = 0; i < 4; ++i) acc[p][i] += scale * sum[i] + next * other[i];
      }
    } else {
      const uint32_t a[4] = {w.x, w.y, w.z, w.w};
      mma_bf16(acc[p], a, x.b);
    }
  }
}

// A weight run of `panels` panels times the staged activations.
template <class S>
struct Stream {
  const Call& c;
  const int panels, head;
  float* scales;
  Blocks blocks;

  TC_DEVICE Stream(const Call& call, int panels)
      : c(call), panels(panels), head(S::head_blocks(panels)), scales(reinterpret_cast<float*>(c.scratch + S::FIXED)),
        blocks(call) {
    if constexpr (S::W::SCALED) {
      for (int b = c.warp(); b < head; b += CONSUMER_WARPS)
        reinterpret_cast<uint4*>(scales)[b * LANES + c.lane()] = reinterpret_cast<const uint4*>(blocks.at(b))[c.lane()];
      body_barrier();
    }
  }

  // After the scales: memory of the op.
  TC_DEVICE char* more() const { return c.scratch + S::FIXED + head * FRAGMENT_BYTES; }

  TC_DEVICE float* partial(int panel, int residue) const {
    return reinterpret_cast<float*>(c.scratch + S::PARTIAL + panel * S::PANEL_BYTES) + residue * S::COLUMNS * PANEL;
  }

  // The warp's partial sum of a panel: of the k-blocks whose number in the run is the warp's, modulo 8.
  TC_DEVICE void add_panel(int panel, float* to_panel) {
    const int residue = (c.warp() - panel * S::BLOCKS) & (RESIDUES - 1);
    float acc[S::PRODUCTS][4] = {};
    for (int b = residue; b < S::BLOCKS;) {
      // As many as are in the slot, without a wait for the ring.
      const char* block = blocks.at(head + panel * S::BLOCKS + b);
      const int there = blocks.begin + SLOT_BLOCKS - head - panel * S::BLOCKS;
      const int end = there < S::BLOCKS ? there : S::BLOCKS;
#pragma unroll 4
      for (; b < end; b += RESIDUES, block += RESIDUES * FRAGMENT_BYTES)
        add_block<S>(acc, block, c, b, scales + panel * S::SCALES);
    }
    float* to = to_panel + residue * S::COLUMNS * PANEL;
    TC_UNROLL for (int p = 0; p < S::PRODUCTS; ++p)
      TC_UNROLL for (int i = 0; i < 4; ++i) {
        const int column = p * 8 + c.lane() % 4 * 2 + i % 2;
        if (column < S::COLUMNS) to[column * PANEL + i / 2 * 8 + c.lane() / 4] = acc[p][i];
      }
  }

  // A row's sum over the partial sums of one column.
  TC_DEVICE static float whole(const float* panel, int column, int row) {
    float r[RESIDUES];
    TC_UNROLL for (int i = 0; i < RESIDUES; ++i)
      r[i] = i < S::BLOCKS ? panel[(i * S::COLUMNS + column) * PANEL + row] : 0.f;
    return ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
  }

  // Panels begin .. begin + N * groups of the run, which alternate between N weights: `each(sums, t, group, row)` gets
  // the sums of a row of each weight for token t. With `last` the run ends here, and no warp reads the staged activations.
  template <class Each>
  TC_DEVICE void multiply(int begin, int groups, bool last, Each&& each) {
    for (int group = 0; group < groups; group += S::GROUPS) {
      const int some = groups - group < S::GROUPS ? groups - group : S::GROUPS;
      if (group) body_barrier();  // the sums before have been taken
      for (int p = 0; p < some * S::N; ++p) add_panel(begin + group * S::N + p, partial(p, 0));
      if (last && group + some == groups) blocks.end(head + panels * S::BLOCKS);
      body_barrier();
      for (int i = c.thread; i < some * S::T * PANEL; i += CONSUMERS) {
        const int row = i % PANEL, t = i / PANEL % S::T, g = i / PANEL / S::T;
        if (t >= c.tokens<S::T>()) continue;
        float sums[S::N];
        TC_UNROLL for (int n = 0; n < S::N; ++n) {
          const float* panel = partial(g * S::N + n, 0);
          sums[n] = whole(panel, t, row) + whole(panel, S::T + t, row);
          if constexpr (S::W::SCALED) sums[n] *= reinterpret_cast<const float*>(c.scratch + S::UNSCALE)[t];
        }
        each(sums, t, group + g, row);
      }
    }
  }
};

// Rows c.tile(0) .. c.tile(1): `epilogue(sums, t, row)` gets the sums of a row of each weight, and stores the result.
template <class S, bool NORM, class Epilogue>
TC_DEVICE void linear_rows(const Call& c, const float* x, int stride, const float* norm, float eps, Epilogue&& epilogue) {
  const int begin = c.tile(0), end = c.tile(1), groups = (end - begin + PANEL - 1) / PANEL;
  stage<S, NORM>(c, x, stride, norm, eps);
  Stream<S> stream(c, groups * S::N);
  stream.multiply(0, groups, true, [&](const float* sums, int t, int group, int in) {
    const int row = begin + group * PANEL + in;
    if (row < end) epilogue(sums, t, row);
  });
}

}  // namespace tc
