// Nodes of CUTLASS's epilogue visitor trees for the FP8 linears: scale and bias per channel; GELU
// and requantisation in blocks of 1x128.
#pragma once

#include <cute/tensor.hpp>
#include <cutlass/epilogue/fusion/sm90_visitor_tma_warpspecialized.hpp>

#include "cuda/sm90/fp8_gemm.h"
#include "cuda/sm90/quantise.cuh"

namespace livetalk::cuda {

namespace visitor = cutlass::epilogue::fusion::detail;

// What CUTLASS requires of every node; these need no workspace and no loads by the producer.
template <class Params_>
struct Node {
  using Arguments = Params_;
  using Params = Params_;

  template <class Shape>
  static constexpr Params to_underlying_arguments(const Shape&, const Arguments& args, void*) {
    return args;
  }
  template <class Shape>
  static bool can_implement(const Shape&, const Arguments&) {
    return true;
  }
  template <class Shape>
  static size_t get_workspace_size(const Shape&, const Arguments&) {
    return 0;
  }
  template <class Shape>
  static cutlass::Status initialize_workspace(
      const Shape&, const Arguments&, void*, cudaStream_t, cutlass::CudaHostAdapter* = nullptr) {
    return cutlass::Status::kSuccess;
  }
  CUTLASS_DEVICE bool is_producer_load_needed() const { return false; }
  CUTLASS_DEVICE bool is_C_load_needed() const { return false; }
  template <class... Args>
  CUTLASS_DEVICE auto get_producer_load_callbacks(const visitor::ProducerLoadArgs<Args...>&) {
    return visitor::EmptyProducerLoadCallbacks{};
  }
};

struct ChannelVectors {
  const float* scale;
  const void* bias;  // null: none
  bool half;         // whether the bias is bf16, else fp32
};

// input[m, n] * scale[n] + bias[n]. The vectors' part of a tile goes through shared memory.
template <int COLUMNS>
struct ChannelAffine : Node<ChannelVectors> {
  struct SharedStorage {
    alignas(16) float scale[COLUMNS];
    alignas(16) float bias[COLUMNS];
  };

  ChannelVectors params;
  SharedStorage* shared;

  CUTLASS_HOST_DEVICE ChannelAffine() : params{}, shared(nullptr) {}
  CUTLASS_HOST_DEVICE ChannelAffine(const ChannelVectors& params_, const SharedStorage& storage)
      : params(params_), shared(const_cast<SharedStorage*>(&storage)) {}

  template <class Coordinates>
  struct Callbacks : visitor::EmptyConsumerStoreCallbacks {
    ChannelVectors params;
    SharedStorage* shared;
    Coordinates coordinates;  // of the thread's values, relative to the first
    int first;                // the thread's first column in the tile
    int column, columns;      // the tile's first column, and the total
    int thread, threads;

    CUTLASS_DEVICE Callbacks(
        const ChannelVectors& params_, SharedStorage* shared_, Coordinates coordinates_, int first_,
        int column_, int columns_, int thread_, int threads_)
        : params(params_), shared(shared_), coordinates(coordinates_), first(first_),
          column(column_), columns(columns_), thread(thread_), threads(threads_) {}

    CUTLASS_DEVICE float bias_at(int n) const {
      if (params.bias == nullptr) return 0.0f;
      if (!params.half) return static_cast<const float*>(params.bias)[n];
      return __uint_as_float(uint32_t{static_cast<const uint16_t*>(params.bias)[n]} << 16);
    }

    CUTLASS_DEVICE void begin() {
      for (int i = thread; i < COLUMNS; i += threads) {
        const bool inside = column + i < columns;
        shared->scale[i] = inside ? params.scale[column + i] : 0.0f;
        shared->bias[i] = inside ? bias_at(column + i) : 0.0f;
      }
    }
    CUTLASS_DEVICE bool begin_sync_needed() const { return true; }

    template <class Sum, class Input, int COUNT>
    CUTLASS_DEVICE auto visit(
        const cutlass::Array<Sum, COUNT>&, int v, int m, int n,
        const cutlass::Array<Input, COUNT>& input) {
      const auto part = coordinates(cute::_, cute::_, cute::_, m, n);
      cutlass::Array<float, COUNT> result;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < COUNT; ++i) {
        const int at = first + static_cast<int>(cute::get<1>(part(v * COUNT + i)));
        result[i] = input[i] * shared->scale[at] + shared->bias[at];
      }
      return result;
    }
  };

  template <bool, class... Args>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(
      const visitor::ConsumerStoreArgs<Args...>& args) {
    const int columns = cute::get<1>(args.problem_shape_mnkl);
    const int column = columns - static_cast<int>(cute::get<1>(args.residue_cD));
    const int first = columns - static_cast<int>(cute::get<1>(args.residue_tCcD)) - column;
    constexpr int threads = decltype(cute::size(args.tiled_copy))::value;
    return Callbacks<decltype(args.tCcD)>(
        params, shared, args.tCcD, first, column, columns, args.thread_idx, threads);
  }
};

struct BlockScales {
  float* scale;       // [rows, columns / 128]
  int64_t row, step;  // strides from row to row, and from block of columns to block
};

// GELU of the input, divided by a scale for each row's 128 columns, which are the epilogue's tile;
// CUTLASS then rounds to e4m3 with saturation. In wgmma's result layout a thread has values of
// two rows, 8 apart, and the four lanes of a quad share these rows.
struct GeluQuantise : Node<BlockScales> {
  struct SharedStorage {};

  BlockScales params;

  CUTLASS_HOST_DEVICE GeluQuantise() : params{} {}
  CUTLASS_HOST_DEVICE GeluQuantise(const BlockScales& params_, const SharedStorage&)
      : params(params_) {}

  template <class Coordinates>
  struct Callbacks : visitor::EmptyConsumerStoreCallbacks {
    BlockScales params;
    Coordinates coordinates;  // of the thread's values, from its first one
    int row, column;          // of the first
    int rows, columns;        // totals

    CUTLASS_DEVICE Callbacks(
        const BlockScales& params_, Coordinates coordinates_, int row_, int column_, int rows_,
        int columns_)
        : params(params_), coordinates(coordinates_), row(row_), column(column_), rows(rows_),
          columns(columns_) {}

    template <class Sum, class Input, int COUNT>
    CUTLASS_DEVICE auto visit(
        const cutlass::Array<Sum, COUNT>&, int, int, int,
        const cutlass::Array<Input, COUNT>& input) {
      cutlass::Array<float, COUNT> result;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < COUNT; ++i) result[i] = gelu_tanh(input[i]);
      return result;
    }

    template <class Buffer, class Sync, class Results>
    CUTLASS_DEVICE void reduce(Buffer&&, const Sync&, int m, int n, bool, Results results) {
      constexpr int count = Results::value_type::kElements;
      constexpr int fragments = decltype(cute::size(results))::value;
      const auto part = coordinates(cute::_, cute::_, cute::_, m, n);
      const auto half = [&](int i) { return static_cast<int>(cute::get<0>(part(i))) / 8 % 2; };
      uint32_t peak[2] = {0, 0};
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < fragments * count; ++i) {
        peak[half(i)] = cute::max(peak[half(i)], magnitude_bits(results(i / count)[i % count]));
      }
      float inverse[2];
      CUTLASS_PRAGMA_UNROLL
      for (int h = 0; h < 2; ++h) {
        peak[h] = cute::max(peak[h], __shfl_xor_sync(0xffffffffu, peak[h], 1));
        peak[h] = cute::max(peak[h], __shfl_xor_sync(0xffffffffu, peak[h], 2));
        const float scale = fp8_scale(__uint_as_float(peak[h]));
        inverse[h] = 1.0f / scale;
        const auto origin = part(0);
        const int at_row = row + static_cast<int>(cute::get<0>(origin)) + 8 * h;
        const int at_column = column + static_cast<int>(cute::get<1>(origin));
        if (threadIdx.x % 4 == 0 && at_row < rows && at_column < columns) {
          params.scale[at_row * params.row + at_column / fp8_block * params.step] = scale;
        }
      }
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < fragments * count; ++i) results(i / count)[i % count] *= inverse[half(i)];
    }
  };

  template <bool, class... Args>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(
      const visitor::ConsumerStoreArgs<Args...>& args) {
    static_assert(
        decltype(cute::size<1>(args.epi_tile))::value == fp8_block, "a tile is a block wide");
    const int rows = cute::get<0>(args.problem_shape_mnkl);
    const int columns = cute::get<1>(args.problem_shape_mnkl);
    const int row = rows - static_cast<int>(cute::get<0>(args.residue_tCcD));
    const int column = columns - static_cast<int>(cute::get<1>(args.residue_tCcD));
    return Callbacks<decltype(args.tCcD)>(params, args.tCcD, row, column, rows, columns);
  }
};

}  // namespace livetalk::cuda
