// How a compiled CPU kernel is found: one symbol per instruction set, picked at run time.
#pragma once

#include <cstdint>

namespace livetalk {

enum class Isa { scalar, avx2, avx512, avx512_bf16, amx };

// The best that this processor runs, unless use_isa has chosen another one.
Isa current_isa();
// Whether bf16 is multiplied in tiles: with AMX, or elsewhere if use_isa asked for it.
bool uses_tiles();

}  // namespace livetalk

// Declares void name(args...) in the namespace of every instruction set, and
// livetalk::name_kernel(), which gives the current one. It is defined in csrc/cpu/<op>.cpp within
// namespace livetalk::LIVETALK_ISA.
#define LIVETALK_DECLARE(isa, name, ...) \
  namespace livetalk::isa {              \
  void name(__VA_ARGS__);                \
  }

#if defined(__x86_64__)
#define LIVETALK_KERNEL(name, ...)                       \
  LIVETALK_DECLARE(scalar, name, __VA_ARGS__)            \
  LIVETALK_DECLARE(avx2, name, __VA_ARGS__)              \
  LIVETALK_DECLARE(avx512, name, __VA_ARGS__)            \
  LIVETALK_DECLARE(avx512_bf16, name, __VA_ARGS__)       \
  LIVETALK_DECLARE(amx, name, __VA_ARGS__)               \
  namespace livetalk {                                   \
  inline auto name##_kernel() -> void (*)(__VA_ARGS__) { \
    switch (current_isa()) {                             \
      case Isa::amx:                                     \
        return amx::name;                                \
      case Isa::avx512_bf16:                             \
        return avx512_bf16::name;                        \
      case Isa::avx512:                                  \
        return avx512::name;                             \
      case Isa::avx2:                                    \
        return avx2::name;                               \
      default:                                           \
        return scalar::name;                             \
    }                                                    \
  }                                                      \
  }
#else
#define LIVETALK_KERNEL(name, ...)            \
  LIVETALK_DECLARE(scalar, name, __VA_ARGS__) \
  namespace livetalk {                        \
  inline auto name##_kernel() -> void (*)(__VA_ARGS__) { return scalar::name; } \
  }
#endif
