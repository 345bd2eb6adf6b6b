// Launchers of row_norm.cuh.
#include "cuda/row_norm.cuh"
#include "livetalk/launch.cuh"

namespace livetalk::cuda {
namespace {

constexpr int max_threads = 512;

// Packs per thread and threads per block for a row: the fewest idle lanes, then the most bytes in
// flight. No threads: the row is too wide.
struct Shape {
  int packs = 0;
  int threads = 0;
};

Shape shape_of(int row_packs) {
  Shape best;
  int least = 0;
  for (const int packs : {4, 3, 5, 2, 6, 8, 1}) {
    const int threads = ((row_packs + packs - 1) / packs + 31) / 32 * 32;
    const int idle = threads * packs - row_packs;
    if (threads <= max_threads && (best.threads == 0 || idle < least)) {
      best = {packs, threads};
      least = idle;
    }
  }
  return best;
}

// Calls function.template operator()<packs>() for the packs of a shape.
template <class Function>
void with_packs(int packs, const Function& function) {
  switch (packs) {
    case 1: return function.template operator()<1>();
    case 2: return function.template operator()<2>();
    case 3: return function.template operator()<3>();
    case 4: return function.template operator()<4>();
    case 5: return function.template operator()<5>();
    case 6: return function.template operator()<6>();
    default: return function.template operator()<8>();
  }
}

}  // namespace

bool add_norm(const AddNorm& args, int64_t rows, bool half, cudaStream_t stream) {
  const Shape shape = shape_of(args.width / (half ? pack<bf16> : pack<float>));
  if (shape.threads == 0) return false;
  with_packs(shape.packs, [&]<int PACKS>() {
    void (*kernel)(AddNorm) = half ? add_norm_kernel<bf16, PACKS> : add_norm_kernel<float, PACKS>;
    launch(kernel, dim3(static_cast<unsigned>(rows)), shape.threads, stream, args);
  });
  return true;
}

bool rms_norm_rope(const RmsNormRope& args, int inputs, bool half, cudaStream_t stream) {
  const Shape shape = shape_of(args.width / (half ? pack<bf16> : pack<float>));
  if (shape.threads == 0) return false;
  const dim3 grid(
      static_cast<unsigned>(args.rows), static_cast<unsigned>(inputs),
      static_cast<unsigned>(args.batch));
  with_packs(shape.packs, [&]<int PACKS>() {
    void (*kernel)(RmsNormRope) =
        half ? rms_norm_rope_kernel<bf16, PACKS> : rms_norm_rope_kernel<float, PACKS>;
    launch(kernel, grid, shape.threads, stream, args);
  });
  return true;
}

}  // namespace livetalk::cuda
