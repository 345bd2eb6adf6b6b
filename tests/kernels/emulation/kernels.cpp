// The launchers of csrc/cuda on a CPU, with plain C arguments.
#include "cuda.h"

#include "cuda/pixel_norm.cu"
#include "cuda/row_norm.cu"

using namespace livetalk::cuda;

extern "C" bool emulate_add_norm(
    const void* x, const void* y, const float* gate, const float* weight, const float* bias,
    void* x_new, void* h, int64_t rows, int width, float eps, bool half) {
  const AddNorm args{x, y, {gate, false}, {weight, false}, {bias, false}, x_new, h, width, eps};
  return add_norm(args, rows, half, nullptr);
}

extern "C" bool emulate_rms_norm_rope(
    const void* q, const void* k, const void* weight_q, const void* weight_k, bool weights_half,
    void* out_q, void* out_k, const int64_t* strides, const float* cosine, const float* sine,
    int batch, int tokens, int64_t row_offset, int width, int head, bool head_major, float eps,
    bool half) {
  const RmsNormRope args{
      {q, k}, {{weight_q, weights_half}, {weight_k, weights_half}}, {out_q, out_k},
      {strides[0], strides[1]}, {strides[2], strides[3]}, cosine, sine, row_offset, tokens, batch,
      width, head, head_major, eps};
  return rms_norm_rope(args, k ? 2 : 1, half, nullptr);
}

extern "C" bool emulate_rms_norm_silu(
    const void* x, const void* gamma, const void* bias, bool vectors_half, void* out,
    int64_t pixels, int channels, bool half) {
  const Channels gamma_of{gamma, vectors_half}, bias_of{bias, vectors_half};
  return rms_norm_silu({x, gamma_of, bias_of, out, pixels, channels}, half, nullptr);
}
