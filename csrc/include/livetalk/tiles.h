// Matrix products of bf16 in tiles: sums of 32 x 32 in fp32, from 32 rows and 32 columns.
//
//   Tiles tiles;                                // once a call and thread: claims the registers
//   tiles.clear();                              // sums = 0
//   tiles.multiply(left, right);                // sums += left right
//   tiles.store(to);                            // [32, 32]
//
// left is [32 rows, 32 inputs]. right [32 inputs, 32 columns] holds pairs of inputs, [16 pairs, 32
// columns, 2]. With AMX there are eight tiles of 16 rows of 64 bytes: four of sums, two of rows on
// the left, two of columns on the right; the processor takes subnormals for zero. Other sets do
// the same in plain C++, in the processor's order of sums: slow, so that tests can run kernels
// anywhere.
#pragma once

#include "livetalk/simd.h"

namespace livetalk::LIVETALK_ISA {

constexpr int64_t tile_side = 32;  // rows and columns of the sums, and inputs of one product

#if defined(__AMX_BF16__)

class Tiles {
 public:
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t columns[16] = {bytes, bytes, bytes, bytes, bytes, bytes, bytes, bytes};
      uint8_t lines[16] = {rows, rows, rows, rows, rows, rows, rows, rows};
    } shape;
    write(&shape);
    _tile_loadconfig(&shape);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  void clear() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  void multiply(const bf16* left, const bf16* right) {
    write(left);
    _tile_loadd(4, left, bytes);
    _tile_loadd(6, right, 2 * bytes);
    _tile_loadd(7, right + tile_side, 2 * bytes);
    _tile_loadd(5, left + rows * tile_side, bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  void store(float* to) const {
    constexpr int64_t stride = tile_side * static_cast<int64_t>(sizeof(float));
    _tile_stored(0, to, stride);
    _tile_stored(1, to + half, stride);
    _tile_stored(2, to + rows * tile_side, stride);
    _tile_stored(3, to + rows * tile_side + half, stride);
  }

 private:
  // GCC does not know how much its tile instructions read, and might write that later, or never.
  static void write(const void* p) { asm volatile("" ::"r"(p) : "memory"); }
  static constexpr int64_t rows = 16, bytes = 64;  // of a tile
  static constexpr int64_t half = 16;              // of tile_side, in elements of fp32
};

#else

class Tiles {
 public:
  void clear() { std::memset(sums, 0, sizeof sums); }
  void multiply(const bf16* left, const bf16* right) {
    for (int64_t i = 0; i < tile_side; ++i) {
      for (int64_t j = 0; j < tile_side; ++j) {
        float even = 0, odd = 0;
        for (int64_t pair = 0; pair < tile_side / 2; ++pair) {
          const bf16* a = left + i * tile_side + 2 * pair;
          const bf16* b = right + 2 * (pair * tile_side + j);
          even += widen(a[0]) * widen(b[0]);
          odd += widen(a[1]) * widen(b[1]);
        }
        sums[i][j] += even + odd;
      }
    }
  }
  void store(float* to) const { std::memcpy(to, sums, sizeof sums); }

 private:
  float sums[tile_side][tile_side];
};

#endif

}  // namespace livetalk::LIVETALK_ISA
