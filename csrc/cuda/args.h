// Arguments of the CUDA kernels, and their launchers. Plain C++, for nvcc and for the bindings.
#pragma once

#include <cstdint>

typedef struct CUstream_st* cudaStream_t;  // as in cuda_runtime_api.h, which emulation lacks

namespace livetalk::cuda {

// A channel vector in bf16 or fp32: a model keeps modulations in fp32 alongside bf16 weights.
struct Channels {
  const void* data;  // null: absent
  bool half;
};

// Channel vectors are [width]; rows are contiguous. The contract: ops/add_norm.
struct AddNorm {
  const void* x;
  const void* y;
  Channels gate;  // absent: 1
  Channels weight;
  Channels bias;
  void* x_new;
  void* h;
  int width;
  float eps;
};

// One or two inputs of equal shape, each with its own weight. Without a table there is no rotation,
// and the output is [rows, width]. The contracts: ops/rms_norm, ops/rms_norm_rope.
struct RmsNormRope {
  const void* x[2];
  Channels weight[2];
  void* out[2];
  int64_t stride[2];        // elements from row to row within a batch entry
  int64_t batch_stride[2];  // elements from batch entry to batch entry
  const float* cosine;      // [.., head / 2]; null: no rotation
  const float* sine;
  int64_t row_offset;
  int rows;   // per batch entry
  int batch;  // entries, at most 65535
  int width;
  int head;  // channels per head
  bool head_major;
  float eps;
};

// x and out [pixels, channels], contiguous. The contract: ops/rms_norm_silu.
struct RmsNormSilu {
  const void* x;
  Channels gamma;
  Channels bias;  // absent: none
  void* out;
  int64_t pixels;
  int channels;
};

// `rows` counts all of them, `inputs` is 1 or 2. `half`: tensors are bf16, else fp32. Each returns
// false, and launches nothing, if a row is too wide for registers.
bool add_norm(const AddNorm& args, int64_t rows, bool half, cudaStream_t stream);
bool rms_norm_rope(const RmsNormRope& args, int inputs, bool half, cudaStream_t stream);
bool rms_norm_silu(const RmsNormSilu& args, bool half, cudaStream_t stream);

}  // namespace livetalk::cuda
