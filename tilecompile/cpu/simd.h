// Vectors of 16 floats on any instruction set: one zmm register, two ymm, or four 128-bit registers (SSE2, NEON).
// Written with the compilers' vector extension, so that one text serves AVX-512, AVX2 and portable builds.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int PARTS = 16 / LANES;
constexpr int PANEL = 16;  // rows of a weight panel

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));

struct bf16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  const uint32_t u = uint32_t(x.bits) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
// Round to nearest, ties to even, as torch does; not-a-number stays one.
inline bf16 to_bf16(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {uint16_t((u >> 16) | 0x40)};
  return {uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}
inline void put(float* p, float x) { *p = x; }
inline void put(bf16* p, float x) { *p = to_bf16(x); }

struct v16 {
  vf p[PARTS];
};

#define EACH for (int i_ = 0; i_ < PARTS; ++i_)

inline v16 splat(float x) {
  v16 r;
  EACH r.p[i_] = x - vf{};
  return r;
}
inline v16 zero() { return splat(0.f); }

inline v16 load(const float* p) {
  v16 r;
  memcpy(&r, p, 64);
  return r;
}
inline v16 load(const bf16* p) {
  v16 r;
  EACH {
    vh h;
    memcpy(&h, p + i_ * LANES, sizeof h);
    const vu u = __builtin_convertvector(h, vu) << 16;
    memcpy(&r.p[i_], &u, sizeof u);
  }
  return r;
}
inline void store(float* p, const v16& x) { memcpy(p, &x, 64); }

// The first n of 16 elements; nothing beyond them is touched, missing ones read as zero.
template <class E>
inline v16 load_n(const E* p, int n) {
  if (n >= 16) return load(p);
  alignas(64) float t[16] = {};
  for (int i = 0; i < n; ++i) t[i] = to_float(p[i]);
  return load(t);
}
template <class E>
inline void store_n(E* p, const v16& x, int n) {
  alignas(64) float t[16];
  store(t, x);
  for (int i = 0; i < n && i < 16; ++i) put(p + i, t[i]);
}
inline void store_n(float* p, const v16& x, int n) {
  if (n >= 16) return store(p, x);
  store_n<float>(p, x, n);
}

#define BINARY(name, op)                            \
  inline v16 name(const v16& a, const v16& b) {     \
    v16 r;                                          \
    EACH r.p[i_] = a.p[i_] op b.p[i_];              \
    return r;                                       \
  }                                                 \
  inline v16 operator op(const v16& a, const v16& b) { return name(a, b); }
BINARY(add, +)
BINARY(sub, -)
BINARY(mul, *)
BINARY(div, /)
#undef BINARY

// a * b + c, contracted to one rounding where the instruction set has it.
inline v16 fma(const v16& a, const v16& b, const v16& c) {
  v16 r;
  EACH r.p[i_] = a.p[i_] * b.p[i_] + c.p[i_];
  return r;
}
inline v16 maximum(const v16& a, const v16& b) {
  v16 r;
  EACH r.p[i_] = a.p[i_] > b.p[i_] ? a.p[i_] : b.p[i_];
  return r;
}
inline v16 minimum(const v16& a, const v16& b) {
  v16 r;
  EACH r.p[i_] = a.p[i_] < b.p[i_] ? a.p[i_] : b.p[i_];
  return r;
}

// Sum and maximum over the 16 lanes, always in the same order.
inline float lane_sum(const v16& x) {
  alignas(64) float t[16];
  store(t, x);
  for (int w = 8; w > 0; w /= 2)
    for (int i = 0; i < w; ++i) t[i] += t[i + w];
  return t[0];
}
inline float lane_max(const v16& x) {
  alignas(64) float t[16];
  store(t, x);
  for (int w = 8; w > 0; w /= 2)
    for (int i = 0; i < w; ++i) t[i] = t[i] > t[i + w] ? t[i] : t[i + w];
  return t[0];
}

// e^x to about 1e-7 relative: 2^n times a polynomial on [-ln2/2, ln2/2] (coefficients: Cephes expf).
inline v16 exp(const v16& x0) {
  const v16 x = minimum(maximum(x0, splat(-87.3f)), splat(88.3f));
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

inline v16 neg(const v16& x) { return zero() - x; }
inline v16 relu(const v16& x) { return maximum(x, zero()); }
inline v16 sigmoid(const v16& x) { return splat(1.f) / (splat(1.f) + exp(neg(x))); }
inline v16 silu(const v16& x) { return x / (splat(1.f) + exp(neg(x))); }
inline v16 tanh(const v16& x) { return splat(1.f) - splat(2.f) / (exp(x + x) + splat(1.f)); }
inline v16 gelu_tanh(const v16& x) {
  const v16 inner = splat(0.7978845608f) * (x + splat(0.044715f) * x * x * x);
  return splat(0.5f) * x * (splat(1.f) + tanh(inner));
}
inline v16 sqrt(const v16& x) {
  v16 r;
  EACH for (int l = 0; l < LANES; ++l) r.p[i_][l] = std::sqrt(x.p[i_][l]);
  return r;
}

inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
#undef EACH
