// merge_lse: blocks [begin, end) of queries. An LSE is [heads, tokens], a result [tokens, heads]:
// the weights of a block of tokens are calculated along the tokens and kept for the results.
#include "cpu/merge_lse.h"

#include <algorithm>
#include <vector>

#include "livetalk/simd.h"

namespace livetalk::LIVETALK_ISA {
namespace {

constexpr int64_t block = merge_lse_block;

// e^x for x <= 0, zero where it is below all normal numbers.
inline Vec weight_of(Vec x) {
  return Vec::select_less(x, Vec::all(-87.0f), Vec::zero(), exp(x));
}

// log(x) for x in [1, 2]: 2 atanh(s) = s p(s^2) with s = (x - 1) / (x + 1) <= 1/3, p fitted.
inline Vec log_of(Vec x) {
  const Vec s = (x - Vec::all(1.0f)) / (x + Vec::all(1.0f)), square = s * s;
  Vec p = Vec::all(2.81426787e-1f);
  p = Vec::fma(p, square, Vec::all(2.79698819e-1f));
  p = Vec::fma(p, square, Vec::all(4.00240958e-1f));
  p = Vec::fma(p, square, Vec::all(6.66663408e-1f));
  p = Vec::fma(p, square, Vec::all(2.0f));
  return p * s;
}

struct Weights {
  Vec a, b, lse;
};

// One of the weights before the division is 1, or both are 0 where neither side has a key.
inline Weights merge(Vec lse_a, Vec lse_b) {
  const Vec least = Vec::all(std::numeric_limits<float>::lowest());
  const Vec larger = Vec::max(lse_a, lse_b);
  const Vec peak = Vec::select_less(larger, least, Vec::zero(), larger);  // no -inf - -inf
  const Vec a = weight_of(lse_a - peak), b = weight_of(lse_b - peak), total = a + b;
  const Vec one = Vec::all(1.0f), half = Vec::all(0.5f);
  const Vec divisor = Vec::select_less(total, half, one, total);
  const Vec none = Vec::all(-std::numeric_limits<float>::infinity());
  return {a / divisor, b / divisor, Vec::select_less(total, half, none, peak + log_of(total))};
}

template <class T, bool streamed>
void rows(const MergeLse& args, int64_t begin, int64_t end) {
  const int64_t blocks = (args.tokens + block - 1) / block, size = args.head_size;
  std::vector<float> weights(static_cast<size_t>(2 * args.heads * block));
  float *weights_a = weights.data(), *weights_b = weights_a + args.heads * block;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t batch = index / blocks, first = index % blocks * block;
    const int64_t count = std::min(block, args.tokens - first);
    for (int64_t head = 0; head < args.heads; ++head) {
      const int64_t at = (batch * args.heads + head) * args.tokens + first;
      sweep(count, [&](int64_t i, int, auto... rest) {
        const Weights merged =
            merge(Vec::load(args.lse_a + at + i, rest...), Vec::load(args.lse_b + at + i, rest...));
        merged.a.store(weights_a + head * block + i);
        merged.b.store(weights_b + head * block + i);
        merged.lse.store(args.lse + at + i, rest...);
      });
    }
    for (int64_t token = 0; token < count; ++token) {
      for (int64_t head = 0; head < args.heads; ++head) {
        const int64_t at = ((batch * args.tokens + first + token) * args.heads + head) * size;
        const T* out_a = static_cast<const T*>(args.out_a) + at;
        const T* out_b = static_cast<const T*>(args.out_b) + at;
        T* out = static_cast<T*>(args.out) + at;
        const Vec weight_a = Vec::all(weights_a[head * block + token]);
        const Vec weight_b = Vec::all(weights_b[head * block + token]);
        sweep(size, [&](int64_t i, int, auto... rest) {
          const Vec part = Vec::load(out_b + i, rest...) * weight_b;
          put<streamed>(Vec::fma(Vec::load(out_a + i, rest...), weight_a, part), out + i, rest...);
        });
      }
    }
  }
  if constexpr (streamed) fence();
}

template <class T>
void rows(const MergeLse& args, int64_t begin, int64_t end) {
  args.stream ? rows<T, true>(args, begin, end) : rows<T, false>(args, begin, end);
}

}  // namespace

void merge_lse(const MergeLse& args, int64_t begin, int64_t end) {
  args.half ? rows<bf16>(args, begin, end) : rows<float>(args, begin, end);
}

}  // namespace livetalk::LIVETALK_ISA
