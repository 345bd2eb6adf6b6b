// Shared by the CUDA bindings: above all, checks. Kernels have raw pointers and load packs of 16
// bytes: whatever could make one read out of bounds or fault on an address is an error here, before
// anything is allocated or launched. Only the libtorch stable ABI is used.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <limits>
#include <optional>
#include <string>
#include <tuple>

namespace livetalk::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

constexpr int64_t pack_bytes = 16;    // per load or store, and granularity of TMA
constexpr int64_t max_batch = 65535;  // blocks along the second and third axis of a grid
constexpr int64_t max_int = std::numeric_limits<int>::max();  // and blocks along the first axis

inline bool is_half(const Tensor& x) { return x.scalar_type() == ScalarType::BFloat16; }

inline bool is_float(const Tensor& x) { return x.scalar_type() == ScalarType::Float; }

inline bool is_aligned(const Tensor& x) {
  return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % pack_bytes == 0;
}

inline cudaStream_t stream_of(const Tensor& x) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Checks for one call of `op`, whose first tensor is `x`. Each names the tensor and the problem.
struct Call {
  const char* op;
  const Tensor& x;

  void require_aligned(const Tensor& tensor, const char* name) const {
    STD_TORCH_CHECK(is_aligned(tensor), op, ": ", name, " does not start at a multiple of 16 bytes");
  }

  void require_same_device(const Tensor& tensor, const char* name) const {
    STD_TORCH_CHECK(
        tensor.device() == x.device(), op, ": ", name,
        " is on another device than the first tensor");
  }

  // The last check: everything after it needs a GPU.
  void require_gpu() const { STD_TORCH_CHECK(x.is_cuda(), op, ": needs tensors on a CUDA device"); }

  // The first activation: fp32 or bf16, at most 2^31 - 1 rows of whole packs. Returns the width.
  int64_t width_of_rows() const {
    STD_TORCH_CHECK(is_float(x) || is_half(x), op, ": needs float32 or bfloat16");
    STD_TORCH_CHECK(x.dim() > 0, op, ": needs rows, not a scalar");
    const int64_t width = x.size(x.dim() - 1), values = pack_bytes / x.element_size();
    STD_TORCH_CHECK(width % values == 0, op, ": rows of ", width, " channels, not a multiple of ", values);
    STD_TORCH_CHECK(
        width <= max_int && (width == 0 || x.numel() / width <= max_int), op,
        ": more than 2^31 - 1 rows, or channels in a row");
    return width;
  }

  // Another activation of x's shape and dtype.
  void require_like(const Tensor& tensor, const char* name) const {
    require_same_device(tensor, name);
    bool same = tensor.scalar_type() == x.scalar_type() && tensor.dim() == x.dim();
    for (int64_t dim = 0; same && dim < x.dim(); ++dim) same = tensor.size(dim) == x.size(dim);
    STD_TORCH_CHECK(same, op, ": ", name, " differs from the first tensor in shape or dtype");
  }

  void require_dense(const Tensor& tensor, const char* name) const {
    STD_TORCH_CHECK(tensor.is_contiguous(), op, ": ", name, " is not contiguous");
    require_aligned(tensor, name);
  }

  // A vector of `width` channels in fp32 or bf16, read in packs.
  void require_channels(const Tensor& vector, int64_t width, const char* name) const {
    require_same_device(vector, name);
    STD_TORCH_CHECK(
        is_float(vector) || is_half(vector), op, ": ", name, " is neither float32 nor bfloat16");
    STD_TORCH_CHECK(
        vector.numel() == width, op, ": ", name, " has ", vector.numel(), " elements, not ", width);
    require_dense(vector, name);
  }
};

}  // namespace livetalk::cuda
