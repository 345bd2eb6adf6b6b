// The CUDA version that the extension was built with, and the newest that the driver supports.
#include "bindings/cuda.h"

namespace livetalk::cuda {
namespace {

// Both as 1000 * major + 10 * minor; 0: there is no driver. Creates no context.
std::tuple<int64_t, int64_t> cuda_versions() {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  return {int64_t{CUDART_VERSION}, int64_t{driver}};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(livetalk, m) { m.def("cuda_versions() -> (int, int)"); }

STABLE_TORCH_LIBRARY_IMPL(livetalk, CompositeExplicitAutograd, m) {
  m.impl("cuda_versions", TORCH_BOX(&cuda_versions));
}

}  // namespace livetalk::cuda
