// 16-byte packs of bf16 or fp32 and sums over lanes, for kernels that are bound by memory.
//
// Free of Torch headers and libraries: the tests also compile it for a CPU.
#pragma once

#include <cstdint>

namespace livetalk::cuda {

// Storage of a bfloat16: the upper half of an fp32.
struct bf16 {
  uint16_t bits;
};

// Number of values of T in 16 bytes, the unit that a thread loads and stores.
template <class T>
constexpr int pack = 16 / sizeof(T);

#ifndef __CUDACC__
uint32_t rounded(float value);
#endif

// The low and the high bfloat16 of a word.
__device__ inline float low(uint32_t word) { return __uint_as_float(word << 16); }
__device__ inline float high(uint32_t word) { return __uint_as_float(word & 0xffff0000u); }

// Rounds two values to bfloat16, to nearest even, as one word.
__device__ inline uint32_t join(float low_value, float high_value) {
#ifdef __CUDACC__
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high_value), "f"(low_value));
  return word;
#else
  return rounded(low_value) | rounded(high_value) << 16;  // provided by the emulation on a CPU
#endif
}

__device__ inline void load(const bf16* from, float (&to)[pack<bf16>]) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  to[0] = low(words.x), to[1] = high(words.x), to[2] = low(words.y), to[3] = high(words.y);
  to[4] = low(words.z), to[5] = high(words.z), to[6] = low(words.w), to[7] = high(words.w);
}

__device__ inline void load(const float* from, float (&to)[pack<float>]) {
  const float4 values = *reinterpret_cast<const float4*>(from);
  to[0] = values.x, to[1] = values.y, to[2] = values.z, to[3] = values.w;
}

__device__ inline void load(const float* from, float (&to)[2]) {
  const float2 values = *reinterpret_cast<const float2*>(from);
  to[0] = values.x, to[1] = values.y;
}

__device__ inline void store(bf16* to, const float (&from)[pack<bf16>]) {
  uint4 words;
  words.x = join(from[0], from[1]), words.y = join(from[2], from[3]);
  words.z = join(from[4], from[5]), words.w = join(from[6], from[7]);
  *reinterpret_cast<uint4*>(to) = words;
}

__device__ inline void store(float* to, const float (&from)[pack<float>]) {
  *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
}

// Values as they are after a store and a load.
__device__ inline void round_to(const bf16*, float (&values)[pack<bf16>]) {
  for (int i = 0; i < pack<bf16>; i += 2) {
    const uint32_t word = join(values[i], values[i + 1]);
    values[i] = low(word), values[i + 1] = high(word);
  }
}
__device__ inline void round_to(const float*, float (&)[pack<float>]) {}

// `count` consecutive values of a vector of fp32 or bf16; `first` and `count` are multiples of 4.
template <int count>
__device__ inline void channels(const void* data, bool half, int first, float (&to)[count]) {
#pragma unroll
  for (int i = 0; i < count; i += 4) {
    if (half) {
      const uint2 words = *reinterpret_cast<const uint2*>(static_cast<const bf16*>(data) + first + i);
      to[i] = low(words.x), to[i + 1] = high(words.x);
      to[i + 2] = low(words.y), to[i + 3] = high(words.y);
    } else {
      const float4 values =
          *reinterpret_cast<const float4*>(static_cast<const float*>(data) + first + i);
      to[i] = values.x, to[i + 1] = values.y, to[i + 2] = values.z, to[i + 3] = values.w;
    }
  }
}

constexpr unsigned all_lanes = 0xffffffffu;

// Sum over groups of `lanes` neighbouring lanes (a power of two), returned to every lane.
template <int lanes>
__device__ inline float group_sum(float value) {
  for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(all_lanes, value, step);
  return value;
}

// Sum over a block of whole warps, returned to every thread. `parts` is shared memory for 32 values
// that no other sum of this kernel uses.
__device__ inline float block_sum(float value, float* parts) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  value = group_sum<32>(value);
  if (lane == 0) parts[warp] = value;
  __syncthreads();
  return group_sum<32>(lane < warps ? parts[lane] : 0.0f);
}

}  // namespace livetalk::cuda
