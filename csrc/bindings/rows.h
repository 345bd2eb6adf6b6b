// Tensor views and checks for the CPU bindings of row-wise ops. Kernels have raw pointers, so
// whatever could make one read out of bounds is checked here.
#pragma once

#include <algorithm>
#include <vector>

#include "bindings/cpu.h"

namespace livetalk {

// The tensor itself if contiguous; checking first saves most calls a call into torch.
inline Tensor packed(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

// The same as fp32.
inline Tensor packed_floats(const Tensor& x) {
  return x.scalar_type() == ScalarType::Float ? packed(x) : as_float(x);
}

// A tensor [..., width] as contiguous rows at a single stride.
struct Rows {
  Tensor tensor;  // owns the memory
  int64_t count, width, stride;

  const void* data() const { return tensor.const_data_ptr(); }
};

// The tensor itself if its leading dimensions share a stride, else a contiguous copy.
inline Rows rows_of(const Tensor& x) {
  const int64_t last = x.dim() - 1, width = x.size(last);
  int64_t count = 1, stride = width;
  bool regular = width <= 1 || x.stride(last) == 1;
  for (int64_t dim = last - 1; dim >= 0; --dim) {
    if (x.size(dim) == 1) continue;
    if (count == 1) stride = x.stride(dim);
    regular = regular && x.stride(dim) == stride * count;
    count *= x.size(dim);
  }
  if (regular) return {x, count, width, stride};
  return {torch::stable::contiguous(x), count, width, width};
}

// A channel vector as fp32 [width].
inline Tensor channels_of(const Tensor& x, int64_t width, const char* name) {
  STD_TORCH_CHECK(x.numel() == width, name, " has ", x.numel(), " elements, not ", width);
  return packed_floats(x);
}

// A contiguous tensor of the same dtype and number of elements as another.
inline Tensor like(const Tensor& x, const Tensor& model, const char* name) {
  STD_TORCH_CHECK(
      x.numel() == model.numel() && x.scalar_type() == model.scalar_type(), name,
      " differs in shape or dtype");
  return packed(x);
}

inline void check_dtype(const Tensor& x) {
  STD_TORCH_CHECK(
      x.scalar_type() == ScalarType::Float || is_half(x), "needs float32 or bfloat16");
}

// Results of at least this size bypass the caches, which avoids reading their lines first: up to a
// quarter of the time at 15 MiB, measured with a level-3 cache of 32 MiB.
constexpr int64_t stream_bytes = int64_t{8} << 20;

// Whether a result is large enough, and its pieces of `width` elements are aligned.
inline bool streams(const Tensor& out, int64_t width) {
  constexpr int64_t line = 64;
  const int64_t size = static_cast<int64_t>(out.element_size());
  const auto address = reinterpret_cast<uintptr_t>(out.const_data_ptr());
  return out.numel() * size >= stream_bytes && width * size % line == 0 && address % line == 0;
}

}  // namespace livetalk
