// add_norm: rows [begin, end). A row's fp32 sum stays in the level-1 cache over all passes.
#include <vector>

#include "cpu/add_norm_row.h"

namespace livetalk::LIVETALK_ISA {
namespace {

template <class T, bool gated, bool streamed>
void rows(const AddNorm& args, int64_t begin, int64_t end) {
  std::vector<float> sums(static_cast<size_t>(args.width + Vec::width));
  float* sum = sums.data();
  for (int64_t row = begin; row < end; ++row) {
    const Moments moments = add_row<T, gated, streamed>(args, row, sum);
    T* h = static_cast<T*>(args.h) + row * args.width;
    sweep(args.width, [&](int64_t i, int part, auto... rest) {
      prefetch_next<T>(args, row, i, part);
      const Vec unit = (Vec::load(sum + i, rest...) - moments.mean) * moments.inverse;
      const Vec weight = Vec::load(args.weight + i, rest...);
      put<streamed>(Vec::fma(unit, weight, Vec::load(args.bias + i, rest...)), h + i, rest...);
    });
  }
  if constexpr (streamed) fence();
}

template <class T, bool gated>
void rows(const AddNorm& args, int64_t begin, int64_t end) {
  args.stream ? rows<T, gated, true>(args, begin, end) : rows<T, gated, false>(args, begin, end);
}

}  // namespace

void add_norm(const AddNorm& args, int64_t begin, int64_t end) {
  if (args.half) {
    args.gate ? rows<bf16, true>(args, begin, end) : rows<bf16, false>(args, begin, end);
  } else {
    args.gate ? rows<float, true>(args, begin, end) : rows<float, false>(args, begin, end);
  }
}

}  // namespace livetalk::LIVETALK_ISA
