// Reading FP8 e4m3. Every value of it is a bf16.
#pragma once

#include <array>

#include "livetalk/simd.h"

namespace livetalk::LIVETALK_ISA {

constexpr std::array<uint16_t, 256> make_e4m3_table() {
  std::array<uint16_t, 256> table{};
  for (unsigned code = 0; code < 128; ++code) {
    unsigned exponent = code >> 3, mantissa = code & 7u, bits = 0;
    if (code == 0x7f) {
      bits = 0x7fc0;
    } else if (exponent) {
      bits = (exponent + 120) << 7 | mantissa << 4;
    } else if (mantissa) {  // mantissa * 2^-9: its leading bit becomes the implicit one
      exponent = 121;
      while (mantissa < 8) {
        mantissa <<= 1;
        --exponent;
      }
      bits = exponent << 7 | (mantissa & 7u) << 4;
    }
    table[code] = static_cast<uint16_t>(bits);
    table[code + 128] = static_cast<uint16_t>(bits | 0x8000u);
  }
  return table;
}
inline constexpr std::array<uint16_t, 256> e4m3_table = make_e4m3_table();

inline void widen_e4m3(const uint8_t* codes, int64_t n, bf16* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = {e4m3_table[codes[i]]};
}

}  // namespace livetalk::LIVETALK_ISA
