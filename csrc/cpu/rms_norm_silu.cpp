// rms_norm_silu: blocks [begin, end) of pixels, which are still in the cache when read again.
#include "cpu/rms_norm_silu.h"

#include <algorithm>

#include "livetalk/simd.h"

namespace livetalk::LIVETALK_ISA {
namespace {

// x / (1 + e^-x)
inline Vec silu(Vec x) {
  const Vec power = exp2(x * Vec::all(-1.44269504f));
  return x * Vec::reciprocal(power + Vec::all(1.0f));
}

// Sums of squares -> sqrt(channels) / max(norm, 1e-12)
inline void to_factors(float* sums, int64_t count, int64_t channels) {
  const Vec scale = Vec::all(std::sqrt(static_cast<float>(channels))), least = Vec::all(1e-12f);
  for (int64_t i = 0; i < count; i += Vec::width) {
    (scale / Vec::max(least, Vec::sqrt(Vec::load(sums + i)))).store(sums + i);
  }
}

// Channels are neighbours: a vector holds channels of one pixel.
template <class T, bool streamed, bool biased>
void pixels(const RmsNormSilu& args, int64_t begin, int64_t end) {
  constexpr int64_t block = rms_norm_silu_block;
  const int64_t channels = args.channels;
  for (int64_t first = begin * block; first < std::min(end * block, args.outer); first += block) {
    const int64_t count = std::min(block, args.outer - first);
    const T* x = static_cast<const T*>(args.x) + first * channels;
    T* out = static_cast<T*>(args.out) + first * channels;
    const auto read = [&](const T* pixel, int64_t i, auto... rest) {
      const Vec value = Vec::load(pixel + i, rest...);
      if constexpr (biased) return value + Vec::load(args.bias + i, rest...);
      return value;
    };
    float factors[block] = {};
    for (int64_t pixel = 0; pixel < count; ++pixel) {
      Sums squares;
      sweep(channels, [&](int64_t i, int part, auto... rest) {
        const Vec value = read(x + pixel * channels, i, rest...);
        squares.part[part] = Vec::fma(value, value, squares.part[part]);
      });
      factors[pixel] = squares.total();
    }
    to_factors(factors, block, channels);
    for (int64_t pixel = 0; pixel < count; ++pixel, x += channels, out += channels) {
      const Vec factor = Vec::all(factors[pixel]);
      sweep(channels, [&](int64_t i, int, auto... rest) {
        const Vec unit = read(x, i, rest...) * factor;
        put<streamed>(silu(unit * Vec::load(args.gamma + i, rest...)), out + i, rest...);
      });
    }
  }
  if constexpr (streamed) fence();
}

// Pixels are neighbours: a vector holds one channel of many of them.
template <class T>
void planes(const RmsNormSilu& args, int64_t begin, int64_t end) {
  constexpr int64_t block = rms_norm_silu_planar_block;
  const int64_t blocks = (args.inner + block - 1) / block;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t first = index % blocks * block, count = std::min(block, args.inner - first);
    const int64_t at = index / blocks * args.channels * args.inner + first;
    const T* x = static_cast<const T*>(args.x) + at;
    T* out = static_cast<T*>(args.out) + at;
    float factors[block] = {};
    const auto bias = [&](int64_t channel) {
      return Vec::all(args.bias == nullptr ? 0.0f : args.bias[channel]);
    };
    for (int64_t channel = 0; channel < args.channels; ++channel) {
      const Vec shift = bias(channel);
      sweep(count, [&](int64_t i, int, auto... rest) {
        const Vec value = Vec::load(x + channel * args.inner + i, rest...) + shift;
        Vec::fma(value, value, Vec::load(factors + i)).store(factors + i);
      });
    }
    to_factors(factors, block, args.channels);
    for (int64_t channel = 0; channel < args.channels; ++channel) {
      const Vec gamma = Vec::all(args.gamma[channel]), shift = bias(channel);
      sweep(count, [&](int64_t i, int, auto... rest) {
        const Vec value = Vec::load(x + channel * args.inner + i, rest...) + shift;
        const Vec unit = value * Vec::load(factors + i);
        silu(unit * gamma).store(out + channel * args.inner + i, rest...);
      });
    }
  }
}

template <class T, bool biased>
void run(const RmsNormSilu& args, int64_t begin, int64_t end) {
  if (args.inner > 1) {
    planes<T>(args, begin, end);
  } else if (args.stream) {
    pixels<T, true, biased>(args, begin, end);
  } else {
    pixels<T, false, biased>(args, begin, end);
  }
}

template <class T>
void run(const RmsNormSilu& args, int64_t begin, int64_t end) {
  args.bias != nullptr ? run<T, true>(args, begin, end) : run<T, false>(args, begin, end);
}

}  // namespace

void rms_norm_silu(const RmsNormSilu& args, int64_t begin, int64_t end) {
  args.half ? run<bf16>(args, begin, end) : run<float>(args, begin, end);
}

}  // namespace livetalk::LIVETALK_ISA
