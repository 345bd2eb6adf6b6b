// add_norm_quant: rows [begin, end), as add_norm; h stays in the cache as fp32 until it is FP8.
#include <vector>

#include "cpu/add_norm_row.h"
#include "cpu/quantize_row.h"

namespace livetalk::LIVETALK_ISA {
namespace {

template <class T, bool gated, bool streamed>
void rows(const AddNormQuant& args, int64_t begin, int64_t end) {
  const AddNorm& norm = args.norm;
  std::vector<float> sums(static_cast<size_t>(norm.width + Vec::width));
  float* sum = sums.data();
  for (int64_t row = begin; row < end; ++row) {
    const Moments moments = add_row<T, gated, streamed>(norm, row, sum);
    Sums peaks;
    sweep(norm.width, [&](int64_t i, int part, auto... rest) {
      prefetch_next<T>(norm, row, i, part);
      const Vec unit = (Vec::load(sum + i, rest...) - moments.mean) * moments.inverse;
      const Vec weight = Vec::load(norm.weight + i, rest...);
      const Vec h = Vec::fma(unit, weight, Vec::load(norm.bias + i, rest...));
      h.store(sum + i, rest...);
      peaks.part[part] = Vec::max_nan(peaks.part[part], Vec::abs(h));  // 0 beyond the row
    });
    args.scale[row] = scale_of(peaks.largest_nan());
    quantize_row(sum, args.q + row * norm.width, norm.width, args.scale[row]);
  }
  if constexpr (streamed) fence();
}

template <class T, bool gated>
void rows(const AddNormQuant& args, int64_t begin, int64_t end) {
  args.norm.stream ? rows<T, gated, true>(args, begin, end)
                   : rows<T, gated, false>(args, begin, end);
}

}  // namespace

void add_norm_quant(const AddNormQuant& args, int64_t begin, int64_t end) {
  if (args.norm.half) {
    args.norm.gate ? rows<bf16, true>(args, begin, end) : rows<bf16, false>(args, begin, end);
  } else {
    args.norm.gate ? rows<float, true>(args, begin, end) : rows<float, false>(args, begin, end);
  }
}

}  // namespace livetalk::LIVETALK_ISA
