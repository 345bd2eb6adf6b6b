// Shared by the CPU bindings. Only the libtorch stable ABI is used, so that one binary works with
// every torch from 2.11 on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

namespace livetalk {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Calls kernel(args, begin, end) on pieces of [0, rows) in torch's own threads. `work` is the
// number of elements per row: below 32 k elements a thread costs more than it gains.
template <class Args>
void parallel_rows(
    void (*kernel)(const Args&, int64_t, int64_t), const Args& args, int64_t rows, int64_t work) {
  const int64_t grain = work > 0 ? (32768 + work - 1) / work : rows;
  torch::stable::parallel_for(0, rows, grain < 1 ? 1 : grain, [&](int64_t begin, int64_t end) {
    kernel(args, begin, end);
  });
}

inline bool is_half(const Tensor& x) { return x.scalar_type() == ScalarType::BFloat16; }

// A channel vector as contiguous fp32; copied only if it is not that already.
inline Tensor as_float(const Tensor& x) {
  if (x.scalar_type() == ScalarType::Float && x.is_contiguous()) return x;
  return torch::stable::contiguous(torch::stable::to(x, ScalarType::Float));
}

inline const float* floats(const Tensor& x) { return static_cast<const float*>(x.const_data_ptr()); }

}  // namespace livetalk
