// rms_norm: rows [begin, end). A row is still in the cache when it is read again.
#include "cpu/rms_norm.h"

#include "cpu/rms_row.h"

namespace livetalk::LIVETALK_ISA {
namespace {

template <class T, bool streamed>
void rows(const RmsNorm& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(args.x) + row * args.stride;
    T* out = static_cast<T*>(args.out) + row * args.width;
    const Vec inverse = inverse_rms(x, args.width, args.eps);
    sweep(args.width, [&](int64_t i, int part, auto... rest) {
      prefetch(x + args.stride + i, part);  // the next row, while this one is finished
      const Vec unit = Vec::load(x + i, rest...) * inverse;
      put<streamed>(unit * Vec::load(args.weight + i, rest...), out + i, rest...);
    });
  }
  if constexpr (streamed) fence();
}

template <class T>
void rows(const RmsNorm& args, int64_t begin, int64_t end) {
  args.stream ? rows<T, true>(args, begin, end) : rows<T, false>(args, begin, end);
}

}  // namespace

void rms_norm(const RmsNorm& args, int64_t begin, int64_t end) {
  args.half ? rows<bf16>(args, begin, end) : rows<float>(args, begin, end);
}

}  // namespace livetalk::LIVETALK_ISA
