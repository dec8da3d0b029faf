// What sampling is made of, for all targets: random words, noise, penalties, probabilities. `ops/sample/reference.py`
// says the same in numpy, bit for bit.
//
// No result depends on the machine: products that would be contracted with a sum are kept apart, logarithm and
// exponential are made of sums and products in f64, and probabilities are whole numbers, whose sums have no order.
#pragma once

#ifdef TC_DEVICE
#define TC_SHARED TC_DEVICE
#else
#define TC_SHARED INLINE
#endif

namespace sampling {

// The product, rounded: the compiler can't make it part of a fused operation.
#ifdef __CUDACC__
TC_SHARED double mul(double a, double b) { return __dmul_rn(a, b); }
TC_SHARED float mul(float a, float b) { return __fmul_rn(a, b); }
TC_SHARED int leading_zeros(uint32_t x) { return __clz(int(x)); }
#else
template <class T>
TC_SHARED T mul(T a, T b) {
  T x = a * b;
#if defined(__x86_64__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#else
  asm("" : "+m"(x));
#endif
  return x;
}
TC_SHARED int leading_zeros(uint32_t x) { return x ? __builtin_clz(x) : 32; }
#endif

constexpr float NEVER = __builtin_bit_cast(float, 0xff800000u);  // the logit of an id that is not allowed

constexpr double LN2_HIGH = 0.693147180369123816490, LN2_LOW = 1.90821492927058770002e-10;

// The natural logarithm of a normal positive number, as in FreeBSD's e_log.c.
TC_SHARED double log_of(double x) {
  uint64_t bits;
  memcpy(&bits, &x, 8);
  const uint64_t up = bits + 0x95f62ull * 0x100000000ull;  // the mantissa lies between sqrt(1/2) and sqrt(2)
  const int k = int(up >> 52) - 1023;
  bits = (up & 0xfffffffffffffull) + 0x3fe6a09eull * 0x100000000ull;
  memcpy(&x, &bits, 8);
  const double f = x - 1.0, half = mul(0.5, mul(f, f)), s = f / (2.0 + f), z = mul(s, s), w = mul(z, z);
  const double odd = mul(w, 3.999999999940941908e-01 + mul(w, 2.222219843214978396e-01 + mul(w, 1.531383769920937332e-01)));
  const double even =
      mul(z, 6.666666666666735130e-01 +
                 mul(w, 2.857142874366239149e-01 + mul(w, 1.818357216161805012e-01 + mul(w, 1.479819860510658591e-01))));
  const double rest = mul(s, half + (even + odd)) + mul(double(k), LN2_LOW);
  return mul(double(k), LN2_HIGH) - ((half - rest) - f);
}

template <class... Terms>
TC_SHARED double polynomial(double x, double y, Terms... terms) {
  ((y = mul(y, x) + terms), ...);
  return y;
}

// e^x for x from -40 to 0: a Taylor polynomial of the rest that is left of x after whole multiples of ln 2.
TC_SHARED double exp_of(double x) {
  const double k = floor(mul(x, 1.44269504088896340736) + 0.5);
  const double r = (x - mul(k, LN2_HIGH)) - mul(k, LN2_LOW);
  const double y = polynomial(r, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                              1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0);
  const uint64_t bits = uint64_t(1023 + int64_t(k)) << 52;
  double scale;
  memcpy(&scale, &bits, 8);
  return mul(y, scale);
}

// e^d in units of 2^-BITS, rounded down: a probability relative to that of the likeliest id, whose logit is d more.
template <int BITS>
TC_SHARED uint64_t mass_of(double d) {
  return d > -40 ? uint64_t(mul(exp_of(d), double(uint64_t(1) << BITS))) : 0;
}

constexpr int MASS_BITS = 40;     // of the probabilities that top-p and min-p compare
constexpr int LOGPROB_BITS = 45;  // of those whose sum is under the logarithm of a log-probability

// The probability that an id must have relative to the likeliest one's.
TC_SHARED uint64_t least_mass(double min_p) { return uint64_t(ceil(mul(min_p, double(uint64_t(1) << MASS_BITS)))); }

// What the ids that top-p leaves out may have of all probability.
TC_SHARED uint64_t left_out(double top_p, uint64_t total) { return uint64_t(mul(1.0 - top_p, double(total))); }

// Four words of Philox 4x32-10 (Salmon et al. 2011): counter (position, group of ids, 0, 0), key the seed.
TC_SHARED void philox(uint64_t seed, uint32_t position, uint32_t group, uint32_t (&out)[4]) {
  uint32_t a = position, b = group, c = 0, d = 0, k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p = uint64_t(0xD2511F53u) * a, q = uint64_t(0xCD9E8D57u) * c;
    a = uint32_t(q >> 32) ^ b ^ k0;
    b = uint32_t(q);
    c = uint32_t(p >> 32) ^ d ^ k1;
    d = uint32_t(p);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = a, out[1] = b, out[2] = c, out[3] = d;
}

// Gumbel noise of a random word: -log(-log u), u the middle of its interval of (0, 1).
TC_SHARED double gumbel(uint32_t word) { return -log_of(-log_of(mul(double(word) + 0.5, 0x1p-32))); }

// More than the noise of a word can be, at the price of a few instructions: -log u is at least 1 - u.
TC_SHARED double gumbel_bound(uint32_t word) { return 0.6931472 * (leading_zeros(~word) + 1) + 1e-3; }

// Unsigned numbers in the order of floats; both zeros must be one.
TC_SHARED uint32_t ordered(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u >> 31 ? ~u : u | 0x80000000u;
}

// A logit over the temperature; there is one zero.
TC_SHARED float scaled(float x, float temperature) { return x / temperature + 0.f; }

// The logit of an id that occurred before; see `counts`. `s` has the penalties of a Sampling.
template <class S>
TC_SHARED float penalised(const S& s, float x, int32_t count) {
  x = x < 0 ? mul(x, s.repetition) : x / s.repetition;
  return count > 1 ? (x - mul(s.frequency, float(count >> 1))) - s.presence : x;
}

// How often an id of the step occurred, the step's own ids up to the row's token included: n of them, the first at
// `position`, which `counts` doesn't have yet.
TC_SHARED int32_t counted_with(const int32_t* counts, const int32_t* ids, int n, int32_t id, uint32_t position,
                               uint32_t text_begin) {
  int32_t count = counts[id];
  for (int t = 0; t < n; ++t)
    if (ids[t] == id) count = position + t < text_begin ? count | 1 : count + 2;
  return count;
}

// The logarithm of the sum of e^logit, of the largest logit and the sum of `mass_of<LOGPROB_BITS>`.
TC_SHARED double log_sum(float best, uint64_t sum) {
  return double(best) + log_of(mul(double(sum), 1.0 / double(uint64_t(1) << LOGPROB_BITS)));
}
TC_SHARED float log_probability(float logit, double log_sum) { return float(double(logit) - log_sum); }

}  // namespace sampling
