// rms_norm_silu: rows of a few hundred channels, so that a row takes only part of a warp.
//
// LANES neighbouring lanes share a pixel and take PACKS 16-byte packs each, round-robin: 96 bf16
// channels are 4 lanes x 3 packs of 8, 384 are 16 x 3; no lane idles.
#pragma once

#include "cuda/args.h"
#include "livetalk/vec.cuh"

namespace livetalk::cuda {

template <class T, int LANES, int PACKS>
__global__ void rms_norm_silu_kernel(RmsNormSilu args) {
  constexpr int N = pack<T>;
  const int lane = threadIdx.x % LANES;
  const int64_t group = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / LANES;
  const bool inside = group < args.pixels;  // all lanes of a warp must take part in the shuffles
  const T* x = static_cast<const T*>(args.x) + group * args.channels;
  T* out = static_cast<T*>(args.out) + group * args.channels;

  float value[PACKS][N], square = 0.0f;
#pragma unroll
  for (int k = 0; k < PACKS; ++k) {
    const int i = (k * LANES + lane) * N;
    if (inside && i < args.channels) load(x + i, value[k]);
  }
#pragma unroll
  for (int k = 0; k < PACKS; ++k) {
    const int i = (k * LANES + lane) * N;
    if (inside && i < args.channels) {
      if (args.bias.data != nullptr) {
        float bias[N];
        channels(args.bias.data, args.bias.half, i, bias);
#pragma unroll
        for (int j = 0; j < N; ++j) value[k][j] += bias[j];
      }
#pragma unroll
      for (int j = 0; j < N; ++j) square += value[k][j] * value[k][j];
    }
  }
  const float norm = fmaxf(sqrtf(group_sum<LANES>(square)), 1e-12f);
  const float factor = sqrtf(static_cast<float>(args.channels)) / norm;
#pragma unroll
  for (int k = 0; k < PACKS; ++k) {
    const int i = (k * LANES + lane) * N;
    if (inside && i < args.channels) {
      float gamma[N];
      channels(args.gamma.data, args.gamma.half, i, gamma);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float scaled = value[k][j] * factor * gamma[j];
        value[k][j] = scaled / (1.0f + expf(-scaled));
      }
      store(out + i, value[k]);
    }
  }
}

}  // namespace livetalk::cuda
