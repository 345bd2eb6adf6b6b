// A weight of causal_conv3d in the order in which its kernels read it.
#include <algorithm>

#include "livetalk/conv3d.h"

namespace livetalk::LIVETALK_ISA {
namespace {

constexpr int64_t L = conv3d_lanes, P = conv3d_panel;

// Where element (k, output) of a tap of a chunk is stored.
int64_t place(float, int64_t k, int64_t output) { return k * P + output; }
int64_t place(bf16, int64_t k, int64_t output) { return k / 2 * 2 * P + 2 * output + k % 2; }

template <class T>
void pack(const PackConv3d& args, int64_t begin, int64_t end) {
  const int64_t chunks = conv3d_chunks(args.inputs), taps = args.all_taps();
  for (int64_t panel = begin; panel < end; ++panel) {
    T* to = static_cast<T*>(args.packed) + panel * args.panel_size();
    std::fill_n(to, args.panel_size(), T{});
    const int64_t outputs = std::min(P, args.outputs - panel * P);
    for (int64_t output = 0; output < outputs; ++output) {
      const T* from = static_cast<const T*>(args.weight) + (panel * P + output) * args.stride[0];
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t t = tap / (args.taps[1] * args.taps[2]);
        const int64_t h = tap / args.taps[2] % args.taps[1], w = tap % args.taps[2];
        const T* source = from + t * args.stride[2] + h * args.stride[3] + w * args.stride[4];
        for (int64_t i = 0; i < args.inputs; ++i) {
          const ChunkPlace<T> chunk(chunks, taps, i / L);
          to[chunk.first + tap * chunk.step + place(T{}, i % L, output)] = source[i * args.stride[1]];
        }
      }
    }
  }
}

}  // namespace

void pack_conv3d(const PackConv3d& args, int64_t begin, int64_t end) {
  args.half ? pack<bf16>(args, begin, end) : pack<float>(args, begin, end);
}

}  // namespace livetalk::LIVETALK_ISA
