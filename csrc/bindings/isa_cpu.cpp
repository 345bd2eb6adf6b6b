// Which instruction set the CPU kernels use.
#include <atomic>
#include <string>

#include "bindings/cpu.h"
#include "cpu/kernels.h"

namespace livetalk {
namespace {

bool supported(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  switch (isa) {
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bf16");
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    default:
      return true;
  }
#else
  return isa == Isa::scalar;
#endif
}

Isa best() {
  if (supported(Isa::avx512)) return Isa::avx512;
  return supported(Isa::avx2) ? Isa::avx2 : Isa::scalar;
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{best()};
  return isa;
}

constexpr const char* names[] = {"scalar", "avx2", "avx512"};

std::string isa() { return names[static_cast<int>(chosen().load())]; }

void use_isa(std::string name) {
  if (name == "best") {
    chosen() = best();
    return;
  }
  for (const Isa candidate : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    if (name == names[static_cast<int>(candidate)]) {
      STD_TORCH_CHECK(supported(candidate), "this processor has no ", name);
      chosen() = candidate;
      return;
    }
  }
  STD_TORCH_CHECK(false, "no instruction set ", name, "; choose scalar, avx2, avx512 or best");
}

}  // namespace

Isa current_isa() { return chosen().load(std::memory_order_relaxed); }

STABLE_TORCH_LIBRARY_FRAGMENT(livetalk, m) {
  m.def("isa() -> str");
  m.def("use_isa(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(livetalk, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&isa));
  m.impl("use_isa", TORCH_BOX(&use_isa));
}

}  // namespace livetalk
