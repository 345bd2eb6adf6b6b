// Attention in blocks of keys (FlashAttention, arXiv 2205.14135): the scores of a few queries and
// one block stay in the cache. Queries run along the vectors' lanes in every step: scores are
// k q^T [key, query], sums are v^T p [channel, query], and a softmax needs no sums across lanes.
//
// The weights p are rounded to bf16 where v is bf16 and the processor multiplies pairs of them;
// their sum is that of the unrounded ones. With tiles, 32 keys or channels by 32 queries are
// multiplied at a time; keys and values are packed for that, queries and weights as for pairs.
#include "cpu/attention.h"

#include <algorithm>

#include "livetalk/matmul.h"
#include "livetalk/tiles.h"

namespace livetalk::LIVETALK_ISA {
namespace {

constexpr int64_t W = Vec::width, N = tile_columns, side = tile_side;
constexpr float log2_e = 1.44269504f;
static_assert(attention_queries % N == 0 && attention_block_round % tile_rows == 0);

struct Unit {
  int64_t batch, frame, head;

  Unit(const Attention& args, int64_t index)
      : batch(index / args.heads / args.frames),
        frame(args.first_frame + index / args.heads % args.frames),
        head(index % args.heads) {}

  template <class T>
  const T* at(const void* tensor, const HeadStrides& strides, int64_t token) const {
    return static_cast<const T*>(tensor) + batch * strides.batch + frame * strides.frame +
           token * strides.token + head * strides.head;
  }
};

// Block `index` of a unit's packed blocks: its keys, then its values.
template <class T>
packed_t<T>* packed_keys(const Attention& args, int64_t unit, int64_t index) {
  char* bytes = static_cast<char*>(args.packed) + unit * args.unit_bytes + index * args.block_bytes;
  return reinterpret_cast<packed_t<T>*>(bytes);
}

template <class T>
packed_t<T>* packed_values(const Attention& args, const Keys& keys, packed_t<T>* packed) {
  return packed + attention_round(keys.block) * attention_round(args.channels);
}

#if defined(__AVX512BF16__)
// Keys [count, channels] and values [count, channels], these transposed, for tiles.
void pack_keys(const bf16* source, int64_t stride, int64_t count, int64_t channels, bf16* to) {
  for (int64_t row = 0; row < count; row += side) {
    for (int64_t k = 0; k < channels; k += side) {
      for (int64_t i = row; i < row + side; ++i, to += side) {
        const int64_t left = i < count ? channels - k : 0;
        Packed<bf16>::load(source + std::min(i, count - 1) * stride + k, left)
            .store(reinterpret_cast<float*>(to));
      }
    }
  }
}
void pack_values(const bf16* source, int64_t stride, int64_t count, int64_t channels, bf16* to) {
  for (int64_t channel = 0; channel < attention_round(channels); channel += W) {
    for (int64_t k = 0; k < count; k += side) {
      Vec pairs[W];
      for (int64_t i = 0; i < W; ++i) {
        const int64_t key = k + 2 * i, left = key < count ? channels - channel : 0;
        const bf16* row = source + std::min(key, count - 1) * stride + channel;
        pairs[i] = Packed<bf16>::join(row, stride, count - key, std::max<int64_t>(left, 0));
      }
      transpose(pairs);
      const int64_t square = channel / side * (attention_round(count) / side) + k / side;
      bf16* own = to + (square * side + channel % side) * side;
      for (int64_t i = 0; i < W; ++i) pairs[i].store(reinterpret_cast<float*>(own + i * side));
    }
  }
}
#endif

template <class T>
void pack(const Attention& args, int64_t begin, int64_t end) {
  const int64_t first = args.contexts[0].blocks;
  const int64_t blocks = first + (args.context_count > 1 ? args.contexts[1].blocks : 0);
  for (int64_t task = begin; task < end; ++task) {
    const Unit unit(args, args.first_unit + task / blocks);
    const int64_t index = task % blocks;
    const Keys& keys = args.contexts[index < first ? 0 : 1];
    const int64_t start = (index < first ? index : index - first) * keys.block;
    const int64_t count = std::min(keys.block, keys.count - start);
    packed_t<T>* to = packed_keys<T>(args, task / blocks, index);
    packed_t<T>* values_to = packed_values<T>(args, keys, to);
    const T* k = unit.at<T>(keys.k, keys.k_strides, start);
    const T* v = unit.at<T>(keys.v, keys.v_strides, start);
    const int64_t k_stride = keys.k_strides.token, v_stride = keys.v_strides.token;
    if constexpr (Packed<T>::group == 2) {
      if (args.tiles) {
        pack_keys(k, k_stride, count, args.channels, to);
        pack_values(v, v_stride, count, args.channels, values_to);
        continue;
      }
    }
    pack_rows<tile_rows>(k, k_stride, count, args.channels, to);
    pack_columns<tile_rows>(v, v_stride, args.channels, count, values_to);
  }
}

// What a thread works in; rows of N queries.
template <class T>
struct Workspace {
  explicit Workspace(const Attention& args)
      : queries(attention_round(args.channels) * N),
        weights(attention_block * N),
        scores(attention_block * N),
        product(side * N),
        sums(attention_round(args.channels) * N),
        total(attention_round(args.channels) * N) {
    packed_t<T>* padded = queries;  // tiles read whole squares
    std::fill_n(padded, attention_round(args.channels) * N, packed_t<T>{});
  }

  Aligned<packed_t<T>> queries, weights;
  Aligned<float> scores;
  Aligned<float> product;  // of tiles
  Aligned<float> sums;   // [channel, N] of the blocks of a context so far
  Aligned<float> total;  // [channel, N] of the contexts so far
};

// The running softmax of `vectors` vectors of queries, whose scores are in binary logarithm.
template <class T, int64_t vectors>
struct Softmax {
  Vec peak[vectors], sum[vectors];
  Vec factor[vectors];  // of what was summed before the newest block

  Softmax() {
    for (int64_t j = 0; j < vectors; ++j) {
      peak[j] = Vec::all(-std::numeric_limits<float>::infinity());
      sum[j] = factor[j] = Vec::zero();
    }
  }

  // Turns a block's scores [count, N] into packed weights.
  void add(const float* scores, int64_t count, packed_t<T>* weights) {
    constexpr int64_t G = Packed<T>::group;
    for (int64_t j = 0; j < vectors; ++j) {
      const float* column = scores + j * W;
      Vec highest = peak[j];
      for (int64_t key = 0; key < count; ++key) {
        highest = Vec::max(highest, Vec::load(column + key * N));
      }
      factor[j] = exp2(peak[j] - highest);
      peak[j] = highest;
      Vec added = Vec::zero();
      const auto weight = [&](int64_t key) {
        const Vec value = exp2(Vec::load(column + key * N) - highest);
        added = added + value;
        return value;
      };
      const int64_t whole = count - count % G;
      packed_t<T>* to = weights + j * W * G;
      for (int64_t key = 0; key < whole; key += G) {
        Packed<T>::store([&](int64_t g) { return weight(key + g); }, to + key * N);
      }
      if (whole < count) {
        Packed<T>::store(
            [&](int64_t g) { return g ? Vec::zero() : weight(whole); }, to + whole * N);
      }
      sum[j] = Vec::fma(sum[j], factor[j], added);
    }
  }
};

alignas(64) constexpr float zeros[N] = {};

// How products are made: multiply(rows, depth, a, b, f) calls f(row, j, sum) for every vector j of
// each row of a b.
template <class T, int64_t vectors>
struct Registers {
  explicit Registers(float*) {}

  template <class Finish>
  void multiply(
      int64_t rows, int64_t depth, const packed_t<T>* a, const packed_t<T>* b,
      const Finish& finish) {
    for (int64_t row = 0; row < rows; row += tile_rows) {
      multiply_tile<T, vectors>(
          depth, a + row * panel_size<T>(1, depth), b,
          [](int64_t, int64_t) { return Vec::zero(); },
          [&](int64_t i, int64_t j, Vec sum) { finish(row + i, j, sum); });
    }
  }
};

template <class T, int64_t vectors>
struct InTiles {
  explicit InTiles(float* product) : product(product) {}

  template <class Finish>
  void multiply(int64_t rows, int64_t depth, const T* a, const T* b, const Finish& finish) {
    for (int64_t row = 0; row < rows; row += side) {
      tiles.clear();
      for (int64_t k = 0; k < depth; k += side, a += side * side) tiles.multiply(a, b + k * N);
      tiles.store(product);
      for (int64_t i = 0; i < side; ++i) {
        for (int64_t j = 0; j < vectors; ++j) {
          finish(row + i, j, Vec::load(product + i * N + j * W));
        }
      }
    }
  }

  float* product;
  Tiles tiles;
};

// Adds one context's softmax(scale q k^T + bias) v, for the packed queries, to the total, or
// begins it. The unit's packed blocks of this context begin with block `first`.
template <class T, int64_t vectors, template <class, int64_t> class Products>
Softmax<T, vectors> attend(
    const Attention& args, const Keys& keys, int64_t unit, int64_t first, bool begin,
    Workspace<T>& work) {
  Products<T, vectors> products(work.product);
  Softmax<T, vectors> softmax;
  const int64_t channels = args.channels;
  const Vec scale = Vec::all(args.scale * log2_e);
  for (int64_t index = 0; index < keys.blocks; ++index) {
    const int64_t start = index * keys.block;
    const int64_t count = std::min(keys.block, keys.count - start);
    const bool last = start + count == keys.count;
    packed_t<T>* k = packed_keys<T>(args, unit, first + index);
    packed_t<T>* v = packed_values<T>(args, keys, k);
    products.multiply(count, channels, k, work.queries, [&](int64_t key, int64_t j, Vec sum) {
      (sum * scale).store(work.scores + key * N + j * W);
    });
    if (last) {
      float* bias = work.scores + (count - 1) * N;
      for (int64_t i = 0; i < vectors * W; ++i) bias[i] += keys.last_bias;
    }
    softmax.add(work.scores, count, work.weights);
    if constexpr (std::is_same_v<Products<T, vectors>, InTiles<T, vectors>>) {
      const int64_t written = round_up(count, 2);  // tiles take whole squares
      std::fill_n(work.weights + written * N, (attention_round(count) - written) * N, T{});
    }

    // As a product ends, earlier blocks' sums are added (not before: the sum of each block apart is
    // more exact), and in the last block the softmax is divided and earlier contexts' results are
    // added. Where there is none of them, zeros take their place.
    Vec inverse[vectors];
    for (int64_t j = 0; j < vectors; ++j) {
      inverse[j] = last ? Vec::all(1.0f) / softmax.sum[j] : Vec::all(1.0f);
    }
    const float* before = index ? work.sums : zeros;
    const float* base = last && !begin ? work.total : zeros;
    const int64_t before_step = index ? N : 0, base_step = last && !begin ? N : 0;
    float* to = last ? work.total : work.sums;
    products.multiply(channels, count, v, work.weights, [&](int64_t channel, int64_t j, Vec sum) {
      const Vec earlier = Vec::load(before + channel * before_step + j * W);
      const Vec all = Vec::fma(earlier, softmax.factor[j], sum);
      Vec::fma(all, inverse[j], Vec::load(base + channel * base_step + j * W))
          .store(to + channel * N + j * W);
    });
  }
  return softmax;
}

// `count` queries of a unit, from `token` on.
template <class T, int64_t vectors, template <class, int64_t> class Products>
void panel(
    const Attention& args, int64_t index, int64_t token, int64_t count, Workspace<T>& work) {
  const Unit unit(args, args.first_unit + index);
  const int64_t channels = args.channels;
  pack_rows<N>(
      unit.at<T>(args.q, args.q_strides, token), args.q_strides.token, count, channels,
      work.queries);
  bool begin = true;
  int64_t first = 0;
  for (int64_t c = 0; c < args.context_count; ++c) {
    const Keys& keys = args.contexts[c];
    const auto softmax = attend<T, vectors, Products>(args, keys, index, first, begin, work);
    first += keys.blocks;
    begin = begin && keys.count == 0;
    if (args.lse && c == 0) {
      float peak[N], sum[N];
      for (int64_t j = 0; j < vectors; ++j) {
        softmax.peak[j].store(peak + j * W);
        softmax.sum[j].store(sum + j * W);
      }
      float* lse = args.lse + (unit.batch * args.heads + unit.head) * args.tokens + token;
      for (int64_t i = 0; i < count; ++i) lse[i] = peak[i] / log2_e + std::log(sum[i]);
    }
  }
  if (begin) std::fill_n(static_cast<float*>(work.total), channels * N, 0.0f);

  const int64_t row_size = args.heads * channels;
  T* out = static_cast<T*>(args.out) + (unit.batch * args.tokens + token) * row_size +
           unit.head * channels;
  for (int64_t query = 0; query < count; query += W) {
    for (int64_t channel = 0; channel < channels; channel += W) {
      const int64_t width = std::min(W, channels - channel);
      Vec block[W];
      for (int64_t i = 0; i < W; ++i) {
        block[i] = i < width ? Vec::load(work.total + (channel + i) * N + query) : Vec::zero();
      }
      transpose(block);
      for (int64_t i = 0; i < std::min(W, count - query); ++i) {
        T* row = out + (query + i) * row_size + channel;
        width == W ? block[i].store(row) : block[i].store(row, width);
      }
    }
  }
}

template <class T, template <class, int64_t> class Products = Registers>
void run(const Attention& args, int64_t begin, int64_t end) {
  Workspace<T> work(args);
  const int64_t per_frame = std::min(args.tokens, args.frame_tokens);
  const int64_t tasks = (per_frame + attention_queries - 1) / attention_queries;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t index = task / tasks, frame = Unit(args, args.first_unit + index).frame;
    // The frame's tokens among the queries; a shard may start or end within a frame.
    const int64_t start = std::max<int64_t>(frame * args.frame_tokens - args.offset, 0);
    const int64_t stop = std::min((frame + 1) * args.frame_tokens - args.offset, args.tokens);
    const int64_t first = start + task % tasks * attention_queries;
    const int64_t last = std::min(first + attention_queries, stop);
    for (int64_t token = first; token < last; token += N) {
      const int64_t count = std::min(N, last - token);
      static_assert(tile_vectors == 2);
      count > W ? panel<T, 2, Products>(args, index, token, count, work)
                : panel<T, 1, Products>(args, index, token, count, work);
    }
  }
}

}  // namespace

void attention_pack(const Attention& args, int64_t begin, int64_t end) {
  args.half ? pack<bf16>(args, begin, end) : pack<float>(args, begin, end);
}

void attention(const Attention& args, int64_t begin, int64_t end) {
#if defined(__AVX512BF16__)
  if (args.tiles) return run<bf16, InTiles>(args, begin, end);
#endif
  args.half ? run<bf16>(args, begin, end) : run<float>(args, begin, end);
}

}  // namespace livetalk::LIVETALK_ISA
