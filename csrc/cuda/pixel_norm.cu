// Launcher of pixel_norm.cuh.
#include "cuda/pixel_norm.cuh"
#include "livetalk/launch.cuh"

namespace livetalk::cuda {
namespace {

constexpr int threads = 256;
constexpr int max_packs = 4;

template <class T, int LANES, int PACKS>
void run(const RmsNormSilu& args, cudaStream_t stream) {
  constexpr int pixels = threads / LANES;
  const int64_t blocks = (args.pixels + pixels - 1) / pixels;
  void (*kernel)(RmsNormSilu) = rms_norm_silu_kernel<T, LANES, PACKS>;
  launch(kernel, dim3(static_cast<unsigned>(blocks)), threads, stream, args);
}

template <class T, int LANES>
bool with_lanes(const RmsNormSilu& args, int packs, cudaStream_t stream) {
  switch (packs) {
    case 1: run<T, LANES, 1>(args, stream); return true;
    case 2: run<T, LANES, 2>(args, stream); return true;
    case 3: run<T, LANES, 3>(args, stream); return true;
    case 4: run<T, LANES, 4>(args, stream); return true;
    default: return false;
  }
}

// The fewest lanes that hold a pixel in three or four packs each.
template <class T>
bool with_type(const RmsNormSilu& args, cudaStream_t stream) {
  const int row_packs = args.channels / pack<T>;
  int lanes = 1;
  while (lanes < 32 && lanes * max_packs < row_packs) lanes *= 2;
  const int packs = (row_packs + lanes - 1) / lanes;
  switch (lanes) {
    case 1: return with_lanes<T, 1>(args, packs, stream);
    case 2: return with_lanes<T, 2>(args, packs, stream);
    case 4: return with_lanes<T, 4>(args, packs, stream);
    case 8: return with_lanes<T, 8>(args, packs, stream);
    case 16: return with_lanes<T, 16>(args, packs, stream);
    default: return with_lanes<T, 32>(args, packs, stream);
  }
}

}  // namespace

bool rms_norm_silu(const RmsNormSilu& args, bool half, cudaStream_t stream) {
  return half ? with_type<bf16>(args, stream) : with_type<float>(args, stream);
}

}  // namespace livetalk::cuda
