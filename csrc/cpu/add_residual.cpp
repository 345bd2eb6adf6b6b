// add_residual: rows [begin, end), in one pass.
#include "cpu/add_residual.h"

#include "livetalk/simd.h"

namespace livetalk::LIVETALK_ISA {
namespace {

template <class T, bool streamed>
void rows(const AddResidual& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(args.x) + row * args.x_stride;
    const T* y = static_cast<const T*>(args.y) + row * args.y_stride;
    T* out = static_cast<T*>(args.out) + row * args.width;
    sweep(args.width, [&](int64_t i, int, auto... rest) {
      const Vec sum = Vec::load(x + i, rest...) + Vec::load(y + i, rest...);
      put<streamed>(sum + Vec::load(args.bias + i, rest...), out + i, rest...);
    });
  }
  if constexpr (streamed) fence();
}

template <class T>
void rows(const AddResidual& args, int64_t begin, int64_t end) {
  args.stream ? rows<T, true>(args, begin, end) : rows<T, false>(args, begin, end);
}

}  // namespace

void add_residual(const AddResidual& args, int64_t begin, int64_t end) {
  args.half ? rows<bf16>(args, begin, end) : rows<float>(args, begin, end);
}

}  // namespace livetalk::LIVETALK_ISA
