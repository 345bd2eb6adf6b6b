// Norms of rows that stay in registers between a single load and a single store. The kernels have
// run on a CPU by emulation; CUDA code in this folder is untested on a GPU.
//
// A block takes one row. Its threads take 16-byte packs round-robin, at most PACKS each, so widths
// need not be powers of two: 5120 bf16 values are 160 threads x 4 packs of 8.
#pragma once

#include "cuda/args.h"
#include "livetalk/vec.cuh"

namespace livetalk::cuda {

template <class T, int PACKS>
__global__ void add_norm_kernel(AddNorm args) {
  constexpr int N = pack<T>;
  __shared__ float parts[2][32];
  const int64_t start = static_cast<int64_t>(blockIdx.x) * args.width;
  const T* x = static_cast<const T*>(args.x) + start;
  const T* y = static_cast<const T*>(args.y) + start;
  T* x_new = static_cast<T*>(args.x_new) + start;
  T* h = static_cast<T*>(args.h) + start;

  const bool gated = args.gate.data != nullptr;
  float value[PACKS][N], branch[PACKS][N];
#pragma unroll
  for (int k = 0; k < PACKS; ++k) {  // all loads first, so that many are in flight
    const int i = static_cast<int>(k * blockDim.x + threadIdx.x) * N;
    if (i < args.width) {
      load(x + i, value[k]);
      load(y + i, branch[k]);
    }
  }
  float total = 0.0f;
#pragma unroll
  for (int k = 0; k < PACKS; ++k) {
    const int i = static_cast<int>(k * blockDim.x + threadIdx.x) * N;
    if (i < args.width) {
      float gate[N];
      if (gated) channels(args.gate.data, args.gate.half, i, gate);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        value[k][j] += gated ? gate[j] * branch[k][j] : branch[k][j];
      }
      store(x_new + i, value[k]);
      round_to(x_new, value[k]);  // the norm sees the sum as stored
#pragma unroll
      for (int j = 0; j < N; ++j) total += value[k][j];
    }
  }
  const float mean = block_sum(total, parts[0]) / static_cast<float>(args.width);
  // The variance around the mean: the mean square would lose it if the mean is large.
  float square = 0.0f;
#pragma unroll
  for (int k = 0; k < PACKS; ++k) {
    const int i = static_cast<int>(k * blockDim.x + threadIdx.x) * N;
    if (i < args.width) {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        value[k][j] -= mean;
        square += value[k][j] * value[k][j];
      }
    }
  }
  const float variance = block_sum(square, parts[1]) / static_cast<float>(args.width);
  const float inverse = 1.0f / sqrtf(variance + args.eps);
#pragma unroll
  for (int k = 0; k < PACKS; ++k) {
    const int i = static_cast<int>(k * blockDim.x + threadIdx.x) * N;
    if (i < args.width) {
      float weight[N], bias[N];
      channels(args.weight.data, args.weight.half, i, weight);
      channels(args.bias.data, args.bias.half, i, bias);
#pragma unroll
      for (int j = 0; j < N; ++j) value[k][j] = value[k][j] * inverse * weight[j] + bias[j];
      store(h + i, value[k]);
    }
  }
}

// Blocks [rows of a batch entry, inputs, batch entries], so that none needs divisions.
template <class T, int PACKS>
__global__ void rms_norm_rope_kernel(RmsNormRope args) {
  constexpr int N = pack<T>;
  __shared__ float parts[32];
  const int which = blockIdx.y;
  const int64_t row = blockIdx.x, batch = blockIdx.z, token = batch * gridDim.x + row;
  const T* x = static_cast<const T*>(args.x[which]) + batch * args.batch_stride[which] +
               row * args.stride[which];
  T* out = static_cast<T*>(args.out[which]);

  float value[PACKS][N];
#pragma unroll
  for (int k = 0; k < PACKS; ++k) {
    const int i = static_cast<int>(k * blockDim.x + threadIdx.x) * N;
    if (i < args.width) load(x + i, value[k]);
  }
  float square = 0.0f;
#pragma unroll
  for (int k = 0; k < PACKS; ++k) {
    const int i = static_cast<int>(k * blockDim.x + threadIdx.x) * N;
    if (i < args.width) {
#pragma unroll
      for (int j = 0; j < N; ++j) square += value[k][j] * value[k][j];
    }
  }
  const float mean = block_sum(square, parts) / static_cast<float>(args.width);
  const float inverse = 1.0f / sqrtf(mean + args.eps);
#pragma unroll
  for (int k = 0; k < PACKS; ++k) {
    const int i = static_cast<int>(k * blockDim.x + threadIdx.x) * N;
    if (i < args.width) {
      float weight[N];
      channels(args.weight[which].data, args.weight[which].half, i, weight);
#pragma unroll
      for (int j = 0; j < N; ++j) value[k][j] *= inverse * weight[j];
      int64_t place = token * args.width + i;
      if (args.cosine != nullptr) {
        const unsigned head = static_cast<unsigned>(i) / static_cast<unsigned>(args.head);
        const int channel = i - static_cast<int>(head) * args.head;
        const int64_t pair = (args.row_offset + row) * (args.head / 2) + channel / 2;
        float c[N / 2], s[N / 2];
        load(args.cosine + pair, c);
        load(args.sine + pair, s);
#pragma unroll
        for (int j = 0; j < N; j += 2) {
          const float a = value[k][j], b = value[k][j + 1];
          value[k][j] = a * c[j / 2] - b * s[j / 2];
          value[k][j + 1] = a * s[j / 2] + b * c[j / 2];
        }
        if (args.head_major) {
          const int64_t tokens = static_cast<int64_t>(gridDim.x) * gridDim.z;
          place = (head * tokens + token) * args.head + channel;
        }
      }
      store(out + place, value[k]);
    }
  }
}

}  // namespace livetalk::cuda
