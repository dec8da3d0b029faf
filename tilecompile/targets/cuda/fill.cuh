// Fills memory with random numbers: weights and caches for measurements without a checkpoint.
#pragma once

namespace tc {

// Bits that depend on all bits of a seed, a stream and a place in it.
TC_DEVICE uint32_t random_bits(uint32_t seed, uint32_t stream, uint64_t place) {
  uint32_t h = seed ^ stream * 0x9E3779B1u ^ uint32_t(place >> 32) * 0x85EBCA77u;
  h = (h ^ uint32_t(place)) * 0x85EBCA6Bu;
  h = (h ^ h >> 13) * 0xC2B2AE35u;
  h ^= h >> 16;
  h *= 0x7FEB352Du;
  return h ^ h >> 15;
}

// Block b does fill b: uniform numbers of its range.
TC_DEVICE void random_fill(const DeviceFill* fills, uint32_t seed, uint32_t threads) {
  const DeviceFill f = load(fills + block());
  const float width = (f.high - f.low) * (1.f / 4294967296.f);
  const auto number = [&](uint64_t i) { return f.low + width * float(random_bits(seed, f.stream, i)); };
  for (uint64_t word = thread(); word < f.bytes / 4; word += threads) {
    uint32_t bits;
    if (f.type == FILL_F32) {
      bits = __float_as_uint(number(word));
    } else if (f.type == FILL_BF16) {
      bits = pack_bf16(number(2 * word), number(2 * word + 1));
    } else {
      bits = pack_e4m3(number(4 * word), number(4 * word + 1));
      bits |= uint32_t(pack_e4m3(number(4 * word + 2), number(4 * word + 3))) << 16;
    }
    store(at<uint32_t>(f.target) + word, bits);
  }
}

}  // namespace tc
