// Weights as numbers of a few bits, which become floats in registers (WeightFormat in runtime/weight_formats.py).
//
// A line of a panel is LINE columns of its 16 rows, in 64 bytes; groups of lines may have FRONT bytes in front. What a
// format's numbers are, where its lines and scales stand, and how a line becomes columns, is in its `Scaled`.
#pragma once

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

// Formats without scales have none of this.
template <class W>
struct Scaled {
  static constexpr bool ANY = false;
};

// e4m3 in bytes, as floats too small by 2^8. Two columns are 16 words of two bytes, one row's each; a byte becomes a half
// float where it is shifted behind the sign, between two zero bits and seven. Part i of 16 words.
#if defined(__AVX512F__)
INLINE vf e4m3_words(__m256i words) {
  const __m256i halves = _mm256_and_si256(_mm256_srai_epi16(words, 1), _mm256_set1_epi16(int16_t(0xbf80)));
  return vf(_mm512_cvtph_ps(halves));
}
INLINE void e4m3_pair(const uint8_t* p, int, vf& even, vf& odd) {
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  even = e4m3_words(_mm256_slli_epi16(words, 8));
  odd = e4m3_words(words);
}
INLINE vf e4m3_part(const uint8_t* p, int) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return e4m3_words(_mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 8));
}
#elif defined(__AVX2__)
INLINE vf e4m3_words(__m128i words) {
  return vf(_mm256_cvtph_ps(_mm_and_si128(_mm_srai_epi16(words, 1), _mm_set1_epi16(int16_t(0xbf80)))));
}
INLINE void e4m3_pair(const uint8_t* p, int i, vf& even, vf& odd) {
  const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 2 * LANES * i));
  even = e4m3_words(_mm_slli_epi16(words, 8));
  odd = e4m3_words(words);
}
INLINE vf e4m3_part(const uint8_t* p, int i) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + LANES * i));
  return e4m3_words(_mm_slli_epi16(_mm_cvtepu8_epi16(bytes), 8));
}
#else
INLINE vf e4m3_bytes(vu byte) {
  const vu bits = (byte & 0x7f) << 20 | (byte & 0x80) << 24;  // with the exponent of a float, whose bias is 127
  vf x;
  memcpy(&x, &bits, sizeof x);
  return x * 0x1p112f;
}
INLINE void e4m3_pair(const uint8_t* p, int i, vf& even, vf& odd) {
  vh words;
  memcpy(&words, p + 2 * LANES * i, sizeof words);
  const vu wide = __builtin_convertvector(words, vu);
  even = e4m3_bytes(wide);
  odd = e4m3_bytes(wide >> 8);
}
INLINE vf e4m3_part(const uint8_t* p, int i) {
  vu bytes;
  for (int l = 0; l < LANES; ++l) bytes[l] = p[LANES * i + l];
  return e4m3_bytes(bytes);
}
#endif
constexpr float E4M3_UP = 256.f;

struct fp8 {  // e4m3
  uint8_t bits;
};

// Blocks of 128 x 128 with an f32 scale; those of a tile come first.
template <>
struct Scaled<fp8> {
  static constexpr bool ANY = true;
  static constexpr int BLOCK = SCALE_BLOCK, LINE = 4, GROUP = LINE, FRONT = 0;

  static size_t panel_bytes(int K) { return size_t(K + LINE - 1) / LINE * 64; }
  static int head_scales(int K, int phase) { return (phase + K + BLOCK - 1) / BLOCK; }
  // The offset of the line with column k.
  static size_t line_at(int k) { return size_t(k) * PANEL; }
  static vf scale(const uint8_t*, const float* head, int block, int) { return vf{} + head[block] * E4M3_UP; }
  INLINE static vf column(const uint8_t* line, int q, int part) {
    vf even, odd;
    e4m3_pair(line + q / 2 * 32, part, even, odd);
    return q % 2 ? odd : even;
  }
};

struct nvfp4 {  // two e2m1
  uint8_t bits;
};

// 16 numbers of a row with an e4m3 scale, and an f32 one for the matrix, at the tile's begin. A group of 64 columns begins
// with a line of scales, four blocks' for each row; in the lines of numbers a row is 32 bits, the first column's lowest.
template <>
struct Scaled<nvfp4> {
  static constexpr bool ANY = true;
  static constexpr int BLOCK = 16, LINE = 8, GROUP = 64, FRONT = 64, GROUP_BYTES = FRONT + GROUP * PANEL / 2;

  static size_t panel_bytes(int K) { return size_t(K + GROUP - 1) / GROUP * GROUP_BYTES; }
  static int head_scales(int, int) { return 1; }
  static size_t line_at(int k) { return size_t(k) / GROUP * GROUP_BYTES + FRONT + size_t(k) % GROUP / LINE * 64; }
  static vf scale(const uint8_t* panel, const float* head, int block, int part) {
    const uint8_t* scales = panel + size_t(block) / 4 * GROUP_BYTES + block % 4 * PANEL;
    return e4m3_part(scales, part) * (head[0] * E4M3_UP);
  }
  INLINE static vf column(const uint8_t* line, int q, int part) {
    vu rows;
    memcpy(&rows, line + 4 * LANES * part, sizeof rows);
    const vu code = rows >> (4 * q);
#if defined(__AVX512F__)
    const __m512 all = _mm512_setr_ps(0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.f, -0.5f, -1, -1.5f, -2, -3, -4, -6);
    return vf(_mm512_permutexvar_ps(__m512i(code), all));
#elif defined(__AVX2__)
    const __m256 positive = _mm256_setr_ps(0, 0.5f, 1, 1.5f, 2, 3, 4, 6);
    const __m256 sign = _mm256_castsi256_ps(__m256i((code & 8) << 28));
    return vf(_mm256_or_ps(_mm256_permutevar8x32_ps(positive, __m256i(code)), sign));
#else
    vf x;
    for (int l = 0; l < LANES; ++l) {
      static const float positive[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
      const float value = positive[code[l] & 7];
      x[l] = code[l] & 8 ? -value : value;
    }
    return x;
#endif
  }
};

template <class W>
constexpr bool SCALED = Scaled<W>::ANY;
