// Enough of CUDA on a CPU to run the kernels of csrc/cuda: a thread per CUDA thread, block by block.
//
// It checks what a kernel computes; it knows nothing of timing, alignment faults or races between
// blocks.
#pragma once

#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__ static

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  explicit dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint2 {
  uint32_t x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};
struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline thread_local dim3 threadIdx(0, 0, 0), blockIdx(0, 0, 0), blockDim(1), gridDim(1);

inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

namespace emulation {

struct Warp {
  std::barrier<> barrier{32};
  float values[32];
};
inline thread_local Warp* warp;
inline thread_local std::barrier<>* block;

}  // namespace emulation

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  const unsigned lane = threadIdx.x % 32;
  emulation::warp->values[lane] = value;
  emulation::warp->barrier.arrive_and_wait();
  const float other = emulation::warp->values[lane ^ static_cast<unsigned>(mask)];
  emulation::warp->barrier.arrive_and_wait();
  return other;
}

inline void __syncthreads() { emulation::block->arrive_and_wait(); }

typedef struct CUstream_st* cudaStream_t;

namespace livetalk::cuda {

inline uint32_t rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits >> 16) | 0x40u;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

template <class Args>
void launch(void (*kernel)(Args), dim3 grid, int threads, cudaStream_t, const Args& args) {
  for (unsigned yz = 0; yz < grid.y * grid.z; ++yz) {
    for (unsigned x = 0; x < grid.x; ++x) {
      std::barrier<> block(threads);
      std::vector<std::unique_ptr<emulation::Warp>> warps;
      for (int i = 0; i < threads / 32; ++i) warps.push_back(std::make_unique<emulation::Warp>());
      std::vector<std::thread> pool;
      for (unsigned t = 0; t < static_cast<unsigned>(threads); ++t) {
        pool.emplace_back([&, t] {
          threadIdx = dim3(t, 0, 0), blockIdx = dim3(x, yz % grid.y, yz / grid.y);
          blockDim = dim3(static_cast<unsigned>(threads)), gridDim = grid;
          emulation::warp = warps[t / 32].get(), emulation::block = &block;
          kernel(args);
        });
      }
      for (std::thread& thread : pool) thread.join();
    }
  }
}

}  // namespace livetalk::cuda
