// fp8_gemm_gelu_quant: GELU and requantisation in registers; a tile's columns are a row's block.
#include "cuda/sm90/fp8_gemm.cuh"

namespace livetalk::cuda {

using Fp8GemmGeluQuant = Fp8Kernel<
    fp8_block, cutlass::float_e4m3_t, cute::Shape<cute::_128, cute::Int<fp8_block>>,
    cutlass::epilogue::fusion::Sm90EVT<
        GeluQuantise, cutlass::epilogue::fusion::Sm90EVT<
                          ChannelAffine<fp8_block>, cutlass::epilogue::fusion::Sm90AccFetch>>>;

struct fp8_gemm_gelu_quant_kernel : Fp8GemmGeluQuant::Kernel {};

const char* fp8_gemm_gelu_quant(const Fp8Linear& args, Gpu gpu, cudaStream_t stream) {
  using Kernel = fp8_gemm_gelu_quant_kernel;
  const Kernel::CollectiveEpilogue::FusionCallbacks::Arguments fusion{
      {{}, {args.scale_b, args.bias, args.half_bias}},
      {args.out_scale, args.out_scale_row, args.out_scale_step}};
  return launch_fp8<Fp8GemmGeluQuant, Kernel>(args, fusion, gpu, stream);
}

}  // namespace livetalk::cuda
