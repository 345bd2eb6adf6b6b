// quantize: rows [begin, end). A block is still in the cache when it is read again.
#include "cpu/quantize.h"

#include "cpu/quantize_row.h"

namespace livetalk::LIVETALK_ISA {
namespace {

template <class T>
void rows(const Quantize& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(args.x) + row * args.stride;
    uint8_t* q = args.q + row * args.width;
    float* scale = args.scale + row * (args.width / args.block);
    for (int64_t start = 0; start < args.width; start += args.block, ++scale) {
      Sums peaks;
      sweep(args.block, [&](int64_t i, int part, auto... rest) {
        const Vec size = Vec::abs(Vec::load(x + start + i, rest...));
        peaks.part[part] = Vec::max_nan(peaks.part[part], size);
      });
      *scale = scale_of(peaks.largest_nan());
      quantize_row(x + start, q + start, args.block, *scale);
    }
  }
}

}  // namespace

void quantize(const Quantize& args, int64_t begin, int64_t end) {
  args.half ? rows<bf16>(args, begin, end) : rows<float>(args, begin, end);
}

}  // namespace livetalk::LIVETALK_ISA
