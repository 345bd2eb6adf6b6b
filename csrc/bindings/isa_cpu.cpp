// Which instruction set the CPU kernels use.
#include <atomic>
#include <string>

#include "bindings/cpu.h"
#include "cpu/kernels.h"

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace livetalk {
namespace {

constexpr const char* names[] = {"scalar", "avx2", "avx512", "avx512_bf16", "amx"};
constexpr Isa best_first[] = {Isa::amx, Isa::avx512_bf16, Isa::avx512, Isa::avx2, Isa::scalar};

#if defined(__x86_64__)
// Whether the system lets this process use tiles, whose registers (XFEATURE_XTILEDATA) it must save
// for each thread: ARCH_REQ_XCOMP_PERM, since Linux 5.16. Permission lasts as long as the process.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long request = 0x1023, tile_registers = 18;
  static const bool given = syscall(SYS_arch_prctl, request, tile_registers) == 0;
  return given;
#else
  return false;
#endif
}
#endif

// What the processor, or this build, lacks for a set; empty if nothing. setup.py has the flags.
std::string lacks(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  std::string missing;
#define LIVETALK_NEEDS(least, feature) \
  if (isa >= least && !__builtin_cpu_supports(feature)) missing += " " feature
  LIVETALK_NEEDS(Isa::avx2, "avx2");
  LIVETALK_NEEDS(Isa::avx2, "fma");
  LIVETALK_NEEDS(Isa::avx512, "avx512f");
  LIVETALK_NEEDS(Isa::avx512, "avx512bw");
  LIVETALK_NEEDS(Isa::avx512, "avx512vl");
  LIVETALK_NEEDS(Isa::avx512, "avx512dq");
  LIVETALK_NEEDS(Isa::avx512_bf16, "avx512bf16");
  LIVETALK_NEEDS(Isa::amx, "amx-tile");
  LIVETALK_NEEDS(Isa::amx, "amx-bf16");
#undef LIVETALK_NEEDS
  if (isa >= Isa::amx && missing.empty() && !may_use_tiles()) missing = " tile-permission";
  return missing.empty() ? missing : missing.substr(1);
#else
  return isa == Isa::scalar ? "" : "x86-64";
#endif
}

Isa best() {
  for (const Isa isa : best_first) {
    if (lacks(isa).empty()) return isa;
  }
  return Isa::scalar;
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{best()};
  return isa;
}

Isa named(const std::string& name) {
  for (const Isa isa : best_first) {
    if (name == names[static_cast<int>(isa)]) return isa;
  }
  STD_TORCH_CHECK(
      false, "no instruction set ", name, "; choose scalar, avx2, avx512, avx512_bf16, amx or best");
}

std::string isa() { return names[static_cast<int>(chosen().load())]; }

std::string isa_lacks(std::string name) { return lacks(named(name)); }

std::atomic<bool>& plain_tiles() {
  static std::atomic<bool> plain{false};
  return plain;
}

// `tiles`: multiply bf16 in tiles also where they are plain C++, for tests.
void use_isa(std::string name, bool tiles) {
  const Isa isa = name == "best" ? best() : named(name);
  STD_TORCH_CHECK(lacks(isa).empty(), "this processor has no ", name, ": it lacks ", lacks(isa));
  chosen() = isa;
  plain_tiles() = tiles;
}

}  // namespace

Isa current_isa() { return chosen().load(std::memory_order_relaxed); }

bool uses_tiles() {
  return current_isa() == Isa::amx || plain_tiles().load(std::memory_order_relaxed);
}

STABLE_TORCH_LIBRARY_FRAGMENT(livetalk, m) {
  m.def("isa() -> str");
  m.def("isa_lacks(str name) -> str");
  m.def("use_isa(str name, bool tiles=False) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(livetalk, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&isa));
  m.impl("isa_lacks", TORCH_BOX(&isa_lacks));
  m.impl("use_isa", TORCH_BOX(&use_isa));
}

}  // namespace livetalk
