// Postprocessing in a feed-forward's first linear. Free of CUTLASS: the tests also compile it for a
// CPU.
#pragma once

#include <cstdint>

namespace livetalk::cuda {

// GELU_tanh(x) = x / (1 + exp(-2 u)), u = sqrt(2/pi) (x + 0.044715 x^3), with exp2.
__device__ inline float gelu_tanh(float x) {
  const float power = x * (-2.302208198144325f - 0.1029432395800235f * (x * x));
  return __fdividef(x, 1.0f + exp2f(power));
}

// Bits of |x|, which sort like the values, with NaN on top.
__device__ inline uint32_t magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }

// FP8 scale of values up to `peak`: peak / 448, never denormal; 1 for zeros, NaN for NaN.
__device__ inline float fp8_scale(float peak) {
  constexpr float tiny = 1.1754943508222875e-38f;
  const float scale = peak / 448.0f;
  return peak == 0.0f ? 1.0f : scale < tiny ? tiny : scale;
}

}  // namespace livetalk::cuda
