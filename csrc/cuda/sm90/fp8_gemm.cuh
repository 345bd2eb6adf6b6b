// FP8 linears on CUTLASS: persistent, warp-specialised, TMA, in clusters of two tiles that share
// the data read from b.
//
// Hopper's tensor cores keep about 14 bits of an FP8 sum. CUTLASS's mainloop for scales per block
// adds the result of 128 steps of K, times a scale, to sums in fp32, and so also handles one scale
// per row: its stride along K is then 0. b has no scale there, but one per channel in the epilogue.
// The sums and a partial sum take 128 to 192 of a thread's 240 registers.
#pragma once

#include <cutlass/cutlass.h>

#include <cute/tensor.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "cuda/sm90/epilogue.cuh"

namespace livetalk::cuda {

// Everything about a kernel except its name. `Fusion` is the epilogue's visitor tree,
// `EpilogueTile` the tile it processes at a time.
template <int COLUMNS, class Out, class EpilogueTile, class Fusion>
struct Fp8Kernel {
  using Step = cute::Int<fp8_block>;
  using Tile = cute::Shape<cute::_128, cute::Int<COLUMNS>, Step>;
  using Cluster = cute::Shape<cute::_2, cute::_1, cute::_1>;
  using Fp8 = cutlass::float_e4m3_t;
  using RowMajor = cutlass::layout::RowMajor;
  static constexpr int fp8_alignment = 16;
  static constexpr int out_alignment = 16 / sizeof(Out);

  // Element (m, k) of scale_a is scale_a[m, k / 128]; every element of b's is the same one.
  using ScaleA = cute::Layout<
      cute::Shape<cute::Shape<cute::_1, int>, cute::Shape<Step, int>, int>,
      cute::Stride<cute::Stride<cute::_0, int>, cute::Stride<cute::_0, int>, int>>;
  using ScaleB = cute::Layout<
      cute::Shape<cute::Shape<cute::Int<COLUMNS>, int>, cute::Shape<Step, int>, int>,
      cute::Stride<
          cute::Stride<cute::_0, cute::_0>, cute::Stride<cute::_0, cute::_0>, cute::_0>>;

  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster, EpilogueTile, float,
      float, void, RowMajor, out_alignment, Out, RowMajor, out_alignment,
      cutlass::epilogue::TmaWarpSpecializedCooperative, Fusion>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Fp8, cute::tuple<RowMajor, ScaleA>,
      fp8_alignment, Fp8, cute::tuple<cutlass::layout::ColumnMajor, ScaleB>, fp8_alignment, float,
      Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<
          static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
      cutlass::gemm::KernelTmaWarpSpecializedCooperativeFP8Blockwise>::CollectiveOp;
  using Kernel =
      cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Mainloop, Epilogue>;
};

// The scale of b's blocks.
static __device__ const float no_scale = 1.0f;

// Launches `Kernel`, a named descendant of `Types::Kernel`; returns null, or what is wrong.
template <class Types, class Kernel, class FusionArguments>
const char* launch_fp8(
    const Fp8Linear& args, const FusionArguments& fusion, Gpu gpu, cudaStream_t stream) {
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
  using Out = typename Kernel::ElementD;
  const int steps = (args.depth + fp8_block - 1) / fp8_block;
  const int across = (args.columns + cute::size<1>(typename Types::Tile{}) - 1) /
                     cute::size<1>(typename Types::Tile{});
  const typename Types::ScaleA scale_a = cute::make_layout(
      cute::make_shape(
          cute::make_shape(cute::_1{}, args.rows), cute::make_shape(typename Types::Step{}, steps),
          1),
      cute::make_stride(
          cute::make_stride(cute::_0{}, args.scale_row),
          cute::make_stride(cute::_0{}, args.scale_step), 0));
  const typename Types::ScaleB scale_b(cute::make_shape(
      cute::make_shape(cute::size<1>(typename Types::Tile{}), across),
      cute::make_shape(typename Types::Step{}, steps), 1));
  void* one = nullptr;
  if (const cudaError_t error = cudaGetSymbolAddress(&one, no_scale); error != cudaSuccess) {
    return cudaGetErrorString(error);
  }

  typename Gemm::Arguments arguments{};
  arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
  arguments.problem_shape = {args.rows, args.columns, args.depth, 1};
  const typename Kernel::StrideA rows_a{args.depth, cute::_1{}, 0};
  const typename Kernel::StrideB rows_b{args.depth, cute::_1{}, 0};
  const typename Kernel::StrideD rows_out{args.columns, cute::_1{}, 0};
  arguments.mainloop.ptr_A = static_cast<const typename Types::Fp8*>(args.a);
  arguments.mainloop.dA = rows_a;
  arguments.mainloop.ptr_B = static_cast<const typename Types::Fp8*>(args.b);
  arguments.mainloop.dB = rows_b;
  arguments.mainloop.ptr_SFA = args.scale_a;
  arguments.mainloop.layout_SFA = scale_a;
  arguments.mainloop.ptr_SFB = static_cast<const float*>(one);
  arguments.mainloop.layout_SFB = scale_b;
  arguments.epilogue.thread = fusion;
  arguments.epilogue.ptr_D = static_cast<Out*>(args.out);
  arguments.epilogue.dD = rows_out;
  arguments.hw_info.device_id = gpu.device;
  arguments.hw_info.sm_count = gpu.processors;
  arguments.scheduler.max_swizzle_size = 8;  // concurrent tiles form nearly a square

  cutlass::Status status = Gemm::can_implement(arguments);
  if (status != cutlass::Status::kSuccess) return cutlass::cutlassGetStatusString(status);
  if (Gemm::get_workspace_size(arguments) != 0) return "the kernel needs a workspace";
  Gemm gemm;
  status = gemm.run(arguments, nullptr, stream);
  return status == cutlass::Status::kSuccess ? nullptr : cutlass::cutlassGetStatusString(status);
}

}  // namespace livetalk::cuda
