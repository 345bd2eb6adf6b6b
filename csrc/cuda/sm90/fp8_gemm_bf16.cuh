// fp8_gemm: bf16 results, tiles of 128 rows and COLUMNS columns.
#pragma once

#include "cuda/sm90/fp8_gemm.cuh"

namespace livetalk::cuda {

template <int COLUMNS>
using Fp8Gemm = Fp8Kernel<
    COLUMNS, cutlass::bfloat16_t, cutlass::epilogue::collective::EpilogueTileAuto,
    cutlass::epilogue::fusion::Sm90EVT<
        ChannelAffine<COLUMNS>, cutlass::epilogue::fusion::Sm90AccFetch>>;

// Its name is what profilers and `livetalk inspect` show.
template <int COLUMNS>
struct fp8_gemm_kernel : Fp8Gemm<COLUMNS>::Kernel {};

template <int COLUMNS>
const char* launch_fp8_gemm(const Fp8Linear& args, Gpu gpu, cudaStream_t stream) {
  using Kernel = fp8_gemm_kernel<COLUMNS>;
  const typename Kernel::CollectiveEpilogue::FusionCallbacks::Arguments fusion{
      {}, {args.scale_b, args.bias, args.half_bias}};
  return launch_fp8<Fp8Gemm<COLUMNS>, Kernel>(args, fusion, gpu, stream);
}

}  // namespace livetalk::cuda
