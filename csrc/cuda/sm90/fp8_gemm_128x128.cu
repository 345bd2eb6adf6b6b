#include "cuda/sm90/fp8_gemm_bf16.cuh"

namespace livetalk::cuda {

const char* fp8_gemm_128x128(const Fp8Linear& args, Gpu gpu, cudaStream_t stream) {
  return launch_fp8_gemm<128>(args, gpu, stream);
}

}  // namespace livetalk::cuda
