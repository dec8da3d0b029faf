// The elementwise functions of epilogues (tilecompile/ir/expr.py) on single numbers.
#pragma once

namespace tc {

TC_DEVICE float add(float a, float b) { return a + b; }
TC_DEVICE float sub(float a, float b) { return a - b; }
TC_DEVICE float mul(float a, float b) { return a * b; }
TC_DEVICE float div(float a, float b) { return a / b; }
// Where either is NaN the result is b.
TC_DEVICE float maximum(float a, float b) { return a > b ? a : b; }
TC_DEVICE float minimum(float a, float b) { return a < b ? a : b; }
TC_DEVICE float neg(float x) { return -x; }
TC_DEVICE float relu(float x) { return maximum(0.f, x); }  // NaN stays NaN
TC_DEVICE float exp(float x) { return expf(x); }
TC_DEVICE float sqrt(float x) { return sqrtf(x); }
TC_DEVICE float tanh(float x) { return tanhf(x); }
TC_DEVICE float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }
TC_DEVICE float silu(float x) { return x / (1.f + expf(-x)); }
TC_DEVICE float gelu_tanh(float x) {
  return 0.5f * x * (1.f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
}

}  // namespace tc
