// Weights as numbers of a few bits, which become floats in registers (WeightFormat in runtime/weight_formats.py).
//
// A line of a panel is LINE_COLS columns of 16 rows, 64 bytes. Its numbers come out multiplied by a power of two, the
// same on every instruction set, which the scale of their block makes up for: SCALE_UP.
#pragma once

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

struct fp8 {  // e4m3, without infinities
  uint8_t bits;
};

// Whether a format has scales, one for each of a panel's rows' blocks of columns, in front of a tile's panels.
template <class W>
constexpr bool SCALED = false;
template <>
constexpr bool SCALED<fp8> = true;

constexpr int LINE_COLS = 4;         // of one-byte numbers
constexpr float SCALE_UP = 256.f;    // from an exponent's bias in e4m3, 7, to that in half floats, 15

// Part i of the 16 rows of each of a line's columns. Two columns are 16 words of two bytes, one row's each. A byte becomes
// a half float where it is shifted behind the sign, between two zero bits and seven.
#if defined(__AVX512F__)
INLINE void load_line(const fp8* p, int, vf (&column)[LINE_COLS]) {
  const __m512i words = _mm512_loadu_si512(p), mask = _mm512_set1_epi16(int16_t(0xbf80));
  const __m512i odd = _mm512_and_si512(_mm512_srai_epi16(words, 1), mask);
  const __m512i even = _mm512_and_si512(_mm512_srai_epi16(_mm512_slli_epi16(words, 8), 1), mask);
  column[0] = vf(_mm512_cvtph_ps(_mm512_castsi512_si256(even)));
  column[1] = vf(_mm512_cvtph_ps(_mm512_castsi512_si256(odd)));
  column[2] = vf(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(even, 1)));
  column[3] = vf(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(odd, 1)));
}
#elif defined(__AVX2__)
INLINE void load_line(const fp8* p, int i, vf (&column)[LINE_COLS]) {
  const __m128i mask = _mm_set1_epi16(int16_t(0xbf80));
  for (int pair = 0; pair < 2; ++pair) {
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 32 * pair + 2 * LANES * i));
    const __m128i odd = _mm_and_si128(_mm_srai_epi16(words, 1), mask);
    const __m128i even = _mm_and_si128(_mm_srai_epi16(_mm_slli_epi16(words, 8), 1), mask);
    column[2 * pair] = vf(_mm256_cvtph_ps(even));
    column[2 * pair + 1] = vf(_mm256_cvtph_ps(odd));
  }
}
#else
INLINE void load_line(const fp8* p, int i, vf (&column)[LINE_COLS]) {
  for (int pair = 0; pair < 2; ++pair) {
    vh words;
    memcpy(&words, p + 32 * pair + 2 * LANES * i, sizeof words);
    const vu wide = __builtin_convertvector(words, vu);
    for (int odd = 0; odd < 2; ++odd) {
      const vu byte = wide >> (8 * odd);
      const vu bits = (byte & 0x7f) << 20 | (byte & 0x80) << 24;  // with the exponent of a float, whose bias is 127
      vf x;
      memcpy(&x, &bits, sizeof x);
      column[2 * pair + odd] = x * 0x1p112f;
    }
  }
}
#endif
