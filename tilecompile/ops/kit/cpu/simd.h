// Vectors of 16 floats on any instruction set: one zmm register, two ymm, or four 128-bit registers (SSE2, NEON).
// Written with the compilers' vector extension, so that one text serves AVX-512, AVX2 and portable builds.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

// For functions of a few instructions that must not become a call, however large the kernel around them; also for
// lambdas that get vectors or block sizes: `[&](int i, int n) INLINED { … }`.
#define INLINED __attribute__((always_inline))
#define INLINE INLINED inline

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int PARTS = 16 / LANES;

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));

struct bf16 {
  uint16_t bits;
};

INLINE float to_float(float x) { return x; }
INLINE float to_float(bf16 x) {
  const uint32_t u = uint32_t(x.bits) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
// Round to nearest, ties to even, as torch does; NaN stays NaN.
INLINE bf16 to_bf16(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {uint16_t((u >> 16) | 0x40)};
  return {uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}
INLINE void put(float* p, float x) { *p = x; }
INLINE void put(bf16* p, float x) { *p = to_bf16(x); }

struct v16 {
  vf p[PARTS];
};

#define EACH for (int i_ = 0; i_ < PARTS; ++i_)

INLINE v16 splat(float x) {
  v16 r;
  EACH r.p[i_] = x - vf{};
  return r;
}
INLINE v16 zero() { return splat(0.f); }

// Part i of 16 elements.
INLINE vf load_part(const float* p, int i) {
  vf r;
  memcpy(&r, p + LANES * i, sizeof r);
  return r;
}
INLINE vf load_part(const bf16* p, int i) {
  vh h;
  memcpy(&h, p + LANES * i, sizeof h);
  const vu u = __builtin_convertvector(h, vu) << 16;
  vf r;
  memcpy(&r, &u, sizeof u);
  return r;
}
INLINE v16 load(const float* p) {
  v16 r;
  memcpy(&r, p, 64);
  return r;
}
INLINE v16 load(const bf16* p) {
  v16 r;
  EACH r.p[i_] = load_part(p, i_);
  return r;
}
// Part i of 16 rows of two columns of a weight panel, which are stored one after the other, or in bf16 row by row.
INLINE void load_pair(const float* p, int i, vf& even, vf& odd) {
  memcpy(&even, p + LANES * i, sizeof even);
  memcpy(&odd, p + 16 + LANES * i, sizeof odd);
}
INLINE void load_pair(const bf16* p, int i, vf& even, vf& odd) {
  vu u;
  memcpy(&u, p + 2 * LANES * i, sizeof u);
  const vu low = u << 16, high = u & 0xffff0000u;
  memcpy(&even, &low, sizeof low);
  memcpy(&odd, &high, sizeof high);
}
INLINE void store(float* p, const v16& x) { memcpy(p, &x, 64); }
// Rounds as to_bf16 does.
INLINE void store(bf16* p, const v16& x) {
  EACH {
    vu u;
    memcpy(&u, &x.p[i_], sizeof u);
    const vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const vu bits = (u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded;
    const vh h = __builtin_convertvector(bits, vh);
    memcpy(p + i_ * LANES, &h, sizeof h);
  }
}

// The first n of 16 elements; nothing beyond them is touched, missing ones read as zero.
template <class E>
INLINE v16 load_n(const E* p, int n) {
  if (n >= 16) return load(p);
  alignas(64) float t[16] = {};
  for (int i = 0; i < n; ++i) t[i] = to_float(p[i]);
  return load(t);
}
template <class E>
INLINE void store_n(E* p, const v16& x, int n) {
  if (n >= 16) return store(p, x);
  alignas(64) float t[16];
  store(t, x);
  for (int i = 0; i < n; ++i) put(p + i, t[i]);
}
// The first n lanes; the others become zero.
INLINE v16 keep_n(const v16& x, int n) {
  alignas(64) float t[16];
  store(t, x);
  return load_n(t, n);
}

// Calls body(0) … body(N - 1), each written out at once, so that arrays of vectors that the body indexes become
// registers (of a loop the compiler decides that late, or not at all). The body must be INLINED.
template <int N, class Body>
INLINE void repeat(Body&& body) {
  [&]<int... I>(std::integer_sequence<int, I...>) INLINED { (body(I), ...); }(std::make_integer_sequence<int, N>());
}

// Nearly equal blocks of 0..count, of at most `most` elements each: `size` elements from `begin` on, then none.
struct Block {
  int begin = 0, size, count, blocks;

  INLINE Block(int count, int most) : count(count), blocks((count + most - 1) / most) { measure(); }
  INLINE void measure() { size = blocks > 0 ? (count - begin + blocks - 1) / blocks : 0; }
  INLINE void advance() {
    begin += size;
    --blocks;
    measure();
  }
};

// Calls body(i, n) for the blocks i..i+n of begin..end: n is 16 for all but the last. The whole blocks are a loop of
// their own, in which load_n and store_n come out as plain vector moves.
template <class Body>
INLINE void each_block(int begin, int end, Body&& body) {
  int i = begin;
  for (; i + 16 <= end; i += 16) body(i, 16);
  if (i < end) body(i, end - i);
}

#define BINARY(name, op)                            \
  INLINE v16 name(const v16& a, const v16& b) {     \
    v16 r;                                          \
    EACH r.p[i_] = a.p[i_] op b.p[i_];              \
    return r;                                       \
  }                                                 \
  INLINE v16 operator op(const v16& a, const v16& b) { return name(a, b); }
BINARY(add, +)
BINARY(sub, -)
BINARY(mul, *)
BINARY(div, /)
#undef BINARY

// a * b + c, contracted to one rounding where the instruction set has it.
INLINE v16 fma(const v16& a, const v16& b, const v16& c) {
  v16 r;
  EACH r.p[i_] = a.p[i_] * b.p[i_] + c.p[i_];
  return r;
}
// x itself, but not contracted with the sum that it goes into. In a * b + c * d the compiler may contract either
// product; a * b + rounded(c * d) leaves no choice, so that every copy of the expression gives the same bits.
INLINE v16 rounded(const v16& x) {
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
  v16 r;
  EACH r.p[i_] = __builtin_assoc_barrier(x.p[i_]);
  return r;
#else
  return x;
#endif
}
// Where either is NaN the result is b.
INLINE v16 maximum(const v16& a, const v16& b) {
  v16 r;
  EACH r.p[i_] = a.p[i_] > b.p[i_] ? a.p[i_] : b.p[i_];
  return r;
}
INLINE v16 minimum(const v16& a, const v16& b) {
  v16 r;
  EACH r.p[i_] = a.p[i_] < b.p[i_] ? a.p[i_] : b.p[i_];
  return r;
}

// Lanes 2i and 2i + 1 exchanged.
INLINE v16 swap_pairs(const v16& x) {
  v16 r;
#if defined(__AVX512F__)
  r.p[0] = __builtin_shufflevector(x.p[0], x.p[0], 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif defined(__AVX2__)
  EACH r.p[i_] = __builtin_shufflevector(x.p[i_], x.p[i_], 1, 0, 3, 2, 5, 4, 7, 6);
#else
  EACH r.p[i_] = __builtin_shufflevector(x.p[i_], x.p[i_], 1, 0, 3, 2);
#endif
  return r;
}

// Sum and maximum over the 16 lanes, always in the same order.
INLINE float lane_sum(const v16& x) {
  alignas(64) float t[16];
  store(t, x);
  for (int w = 8; w > 0; w /= 2)
    for (int i = 0; i < w; ++i) t[i] += t[i + w];
  return t[0];
}
INLINE float lane_max(const v16& x) {
  alignas(64) float t[16];
  store(t, x);
  for (int w = 8; w > 0; w /= 2)
    for (int i = 0; i < w; ++i) t[i] = t[i] > t[i + w] ? t[i] : t[i + w];
  return t[0];
}

// Shuffles of two vectors by a constant pattern: within each four lanes, the first or second two of `a` and `b`
// alternating; and every other group of G lanes of `a`, followed by those of `b` (even or odd groups).
template <int... L>
struct Lanes {
  template <int Half>
  INLINE static vf zip(vf a, vf b) {
    return __builtin_shufflevector(a, b, (L % 2 * LANES + L / 4 * 4 + Half * 2 + L % 4 / 2)...);
  }
  template <int G, int Odd>
  INLINE static vf groups(vf a, vf b) {
    return __builtin_shufflevector(a, b, (L / G * 2 * G + Odd * G + L % G)...);
  }
};
#if defined(__AVX512F__)
typedef Lanes<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15> AllLanes;
#elif defined(__AVX2__)
typedef Lanes<0, 1, 2, 3, 4, 5, 6, 7> AllLanes;
#else
typedef Lanes<0, 1, 2, 3> AllLanes;
#endif

// Transposes 16 rows of 16: blocks of 4 x 4 within the vectors, then the blocks.
INLINE void transpose(v16 (&m)[16]) {
  v16 r[16];
  repeat<PARTS * PARTS>([&](int square) INLINED {
    const int part = square % PARTS, rows = square / PARTS * LANES;
    vf a[LANES], t[LANES];
    repeat<LANES>([&](int i) INLINED { a[i] = m[rows + i].p[part]; });
    repeat<LANES / 4>([&](int q) INLINED {
      const vf *x = a + 4 * q, b0 = AllLanes::zip<0>(x[0], x[2]), b1 = AllLanes::zip<1>(x[0], x[2]),
               b2 = AllLanes::zip<0>(x[1], x[3]), b3 = AllLanes::zip<1>(x[1], x[3]);
      t[4 * q] = AllLanes::zip<0>(b0, b2), t[4 * q + 1] = AllLanes::zip<1>(b0, b2);
      t[4 * q + 2] = AllLanes::zip<0>(b1, b3), t[4 * q + 3] = AllLanes::zip<1>(b1, b3);
    });
    repeat<4>([&](int c) INLINED {
      const auto put_row = [&](int row, vf x) INLINED { r[part * LANES + row].p[rows / LANES] = x; };
      if constexpr (LANES == 16) {
        const vf even0 = AllLanes::groups<4, 0>(t[c], t[4 + c]), even1 = AllLanes::groups<4, 0>(t[8 + c], t[12 + c]);
        const vf odd0 = AllLanes::groups<4, 1>(t[c], t[4 + c]), odd1 = AllLanes::groups<4, 1>(t[8 + c], t[12 + c]);
        put_row(c, AllLanes::groups<4, 0>(even0, even1)), put_row(8 + c, AllLanes::groups<4, 1>(even0, even1));
        put_row(4 + c, AllLanes::groups<4, 0>(odd0, odd1)), put_row(12 + c, AllLanes::groups<4, 1>(odd0, odd1));
      } else if constexpr (LANES == 8) {
        put_row(c, AllLanes::groups<4, 0>(t[c], t[4 + c])), put_row(4 + c, AllLanes::groups<4, 1>(t[c], t[4 + c]));
      } else {
        put_row(c, t[c]);
      }
    });
  });
  repeat<16>([&](int i) INLINED { m[i] = r[i]; });
}

// Lane i of the result is lane_sum(a[i]), to the bit: halves are added together, two vectors at a time.
template <int G, int N>
INLINE void add_halves(vf (&a)[N]) {
  if constexpr (G > 0) {
    repeat<N / 2>([&](int i) INLINED {
      const vf x = a[2 * i], y = a[2 * i + 1];
      a[i] = AllLanes::groups<G, 0>(x, y) + AllLanes::groups<G, 1>(x, y);
    });
    add_halves<G / 2>(a);
  }
}
INLINE v16 lane_sums(const v16 (&a)[16]) {
  v16 r;
  repeat<PARTS>([&](int part) INLINED {
    vf s[LANES];
    repeat<LANES>([&](int i) INLINED {
      const v16& x = a[part * LANES + i];
      if constexpr (PARTS == 4) s[i] = (x.p[0] + x.p[2]) + (x.p[1] + x.p[3]);
      if constexpr (PARTS == 2) s[i] = x.p[0] + x.p[1];
      if constexpr (PARTS == 1) s[i] = x.p[0];
    });
    add_halves<LANES / 2>(s);
    r.p[part] = s[0];
  });
  return r;
}

// e^x to about 1e-7 relative: 2^n times a polynomial on [-ln2/2, ln2/2] (coefficients: Cephes expf). NaN
// stays NaN.
INLINE v16 exp(const v16& x0) {
  const v16 x = minimum(splat(88.3f), maximum(splat(-87.3f), x0));
  const v16 magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  v16 r;
  EACH {
    const vf shifted = x.p[i_] * 1.44269504f + magic.p[i_];
    const vf n = shifted - magic.p[i_];
    vf f = x.p[i_] - n * 0.693359375f;
    f = f + n * 2.12194440e-4f;
    vf y = f * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * f + 8.3334519073e-3f;
    y = y * f + 4.1665795894e-2f;
    y = y * f + 1.6666665459e-1f;
    y = y * f + 5.0000001201e-1f;
    y = y * f * f + f + 1.f;
    const vi bits = (__builtin_convertvector(n, vi) + 127) << 23;
    vf scale;
    memcpy(&scale, &bits, sizeof bits);
    r.p[i_] = y * scale;
  }
  return r;
}

INLINE v16 neg(const v16& x) { return zero() - x; }
INLINE v16 relu(const v16& x) { return maximum(zero(), x); }  // NaN stays NaN
INLINE v16 sigmoid(const v16& x) { return splat(1.f) / (splat(1.f) + exp(neg(x))); }
INLINE v16 silu(const v16& x) { return x / (splat(1.f) + exp(neg(x))); }
INLINE v16 tanh(const v16& x) { return splat(1.f) - splat(2.f) / (exp(x + x) + splat(1.f)); }
INLINE v16 gelu_tanh(const v16& x) {
  const v16 inner = splat(0.7978845608f) * (x + splat(0.044715f) * x * x * x);
  return splat(0.5f) * x * (splat(1.f) + tanh(inner));
}
INLINE v16 sqrt(const v16& x) {
  v16 r;
  EACH for (int l = 0; l < LANES; ++l) r.p[i_][l] = std::sqrt(x.p[i_][l]);
  return r;
}

#ifdef TC_NO_PREFETCH  // in no engine: `bench --ablate` measures what the hints are worth
INLINE void prefetch(const void*) {}
#else
INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
#endif
#undef EACH
