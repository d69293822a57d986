// RowInt8MatMul: rows rotated, quantised to bytes one by one, multiplied by weights in bytes; and what commonly stands around it.
//
//     RowInt8MatMul(x [..., in], rotation [block, block], weight [out / 16, in / 4, 16, 4], scales [out]) -> [..., out]
//     RowInt8MatMulAdd(x, rotation, weight, scales, residual [..., out])     adds the residual
//     NormRowInt8MatMul(x, rotation, weight, scales, gain [in])              rows go through RMSNormalization first
//     SwiGluRowInt8MatMul(both [..., 2 in], rotation, weight, scales)        rows go through SwiGlu first
//     SwiGluRowInt8MatMulAdd(both, rotation, weight, scales, residual)
//
// `rotation` is the normalised Hadamard matrix, applied to each `block` entries of a row here by its fast transform. Weights are
// unsigned bytes around 128, rows signed bytes; their sums are integers and exact, so that a row's result depends on nothing but
// the row. Each weight is loaded once for the rows of a pass, in the order it lies in memory (tile.h). With few rows the weights'
// bytes are the cost.
#include "row_product.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <utility>

#include "layers.h"
#include "tile.h"

namespace jakiro {
namespace {

constexpr int64_t kAhead = 1 << 13;  // bytes between what is multiplied and what is fetched
constexpr int64_t kAlone = 1 << 11;  // entries below which one thread prepares the rows

void rotate_64(float* x) {
  Floats r[4];
  for (int n = 0; n < 4; ++n) r[n] = butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(load(x + kLanes * n)))));
  const Floats scale = all(0.125f), a = r[0] + r[1], b = r[0] - r[1], c = r[2] + r[3], d = r[2] - r[3];
  store(x, (a + c) * scale);
  store(x + 16, (b + d) * scale);
  store(x + 32, (a - c) * scale);
  store(x + 48, (b - d) * scale);
}

void rotate(float* x, int64_t block) {
  if (block == 64) return rotate_64(x);
  for (int64_t half = 1; half < block; half *= 2) {
    for (int64_t start = 0; start < block; start += 2 * half) {
      for (int64_t n = start; n < start + half; ++n) {
        const float left = x[n], right = x[n + half];
        x[n] = left + right;
        x[n + half] = left - right;
      }
    }
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(block));
  for (int64_t n = 0; n < block; ++n) x[n] *= scale;
}

// Rows go through a block in passes of alike size.
int64_t passes_for(int64_t count) { return (count + kMost - 1) / kMost; }

template <bool kStreams>
struct Product {
  const uint8_t* weight;
  const float *scales, *residual;
  const Rows* rows;
  int64_t in, out;
  float* result;

  template <int kRows, int kWide>
  void some(int64_t first, int64_t block, const uint8_t* next, int64_t fetch) const {
    Ints sums[kRows][kWide];
    const int64_t quads = in / kSide;
    multiply_blocks<kRows, kWide, kStreams>(weight + block * quads * 64, rows->entries.data() + first * in, quads, next, fetch, sums);
    for (int b = 0; b < kWide; ++b) {
      const Floats scale = load(scales + (block + b) * kLanes);
      for (int r = 0; r < kRows; ++r) {
        const int64_t at = (first + r) * out + (block + b) * kLanes;
        Floats y = floats_of(sums[r][b], rows->offsets[first + r]) * all(rows->scales[first + r]) * scale;
        if (residual != nullptr) y = y + load(residual + at);
        store(result + at, y);
      }
    }
  }

  // kWide blocks for `count` rows. One pass of one block fetches a little ahead of itself; otherwise each pass fetches its part of
  // the blocks that come after these.
  template <int kWide>
  void every_row(int64_t count, int64_t block) const {
    const int64_t bytes = in / kSide * 64, passes = passes_for(count);
    const uint8_t* start = weight + block * bytes;
    if (kWide == 1 && passes == 1) return (this->*kPasses<1>[count - 1])(0, block, start + std::min(bytes, kAhead), bytes);
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t first = count * pass / passes, last = count * (pass + 1) / passes, lines = kWide * bytes / 64;
      const int64_t from = lines * pass / passes * 64, to = lines * (pass + 1) / passes * 64;
      (this->*kPasses<kWide>[last - first - 1])(first, block, start + kWide * bytes + from, to - from);
    }
  }

  using Pass = void (Product::*)(int64_t, int64_t, const uint8_t*, int64_t) const;
  template <int kWide, size_t... kCounts>
  static constexpr std::array<Pass, kMost> passes_of(std::index_sequence<kCounts...>) {
    return {&Product::some<static_cast<int>(kCounts) + 1, kWide>...};
  }
  template <int kWide>
  static constexpr std::array<Pass, kMost> kPasses = passes_of<kWide>(std::make_index_sequence<kMost>());
};

float largest_of(const float* x, int64_t count) {
  Floats most = all(0x1p-100f);  // a row of zeros is divided by this
  int64_t n = 0;
  for (; n + kLanes <= count; n += kLanes) most = larger(most, magnitude(load(x + n)));
  float largest = largest_of(most);
  for (; n < count; ++n) largest = std::max(largest, std::fabs(x[n]));
  return largest;
}

// A row rotated in place, then as whole numbers.
void quantise(float* scratch, int64_t in, int64_t block, Entry* entries, float* scale, int32_t* offset) {
  for (int64_t start = 0; start < in; start += block) rotate(scratch + start, block);
  const float largest = largest_of(scratch, in);
  *scale = largest / 127.0f;
  const float steps = 127.0f / largest;
  Ints sums = nothing();
  int64_t n = 0;
  for (; n + kLanes <= in; n += kLanes) {
    const Ints each = rounded(load(scratch + n) * all(steps));
    sums = sums + each;
    store_entries(entries + n, each);
  }
  int32_t sum = sum_of(sums);
  for (; n < in; n += kSide) {
    Entry four[kSide];
    for (int64_t k = 0; k < kSide; ++k) {
      four[kPlace[k]] = static_cast<Entry>(std::nearbyint(scratch[n + k] * steps));
      sum += four[kPlace[k]];
    }
    std::memcpy(entries + n, four, sizeof four);
  }
  *offset = 128 * sum;
}

// RMSNormalization of a row over all its entries.
void norm(const float* x, const float* gain, int64_t in, float epsilon, float* out) {
  Floats squares = all(0.0f);
  int64_t n = 0;
  for (; n + kLanes <= in; n += kLanes) squares = fused(load(x + n), load(x + n), squares);
  float sum = sum_of(squares);
  for (; n < in; ++n) sum += x[n] * x[n];
  const float by = 1.0f / std::sqrt(sum / static_cast<float>(in) + epsilon);
  for (n = 0; n < in; ++n) out[n] = x[n] * by * gain[n];
}

}  // namespace

template <Before kBefore, bool kAdd>
ort::Status* row_product(const Call& call) {
  const Tensor x = call.input(0), rotation = call.input(1), weight = call.input(2), scales = call.input(3);
  const Tensor last = kAdd || kBefore == Before::kNorm ? call.input(4) : Tensor{};
  const int64_t given = x.dims[x.rank - 1], in = kBefore == Before::kSwiGlu ? given / 2 : given, block = rotation.dims[0];
  const int64_t out = scales.dims[0], count = given ? x.count() / given : 0;
  if (weight.rank != 4 || weight.dims[0] * kLanes != out || weight.dims[1] * kSide != in || in % block != 0) {
    return call.fail("RowInt8MatMul: weight, scales and rows do not fit together");
  }
  if ((kAdd && last.count() != count * out) || (kBefore == Before::kNorm && last.count() != in)) {
    return call.fail("RowInt8MatMul: what is added, or the norm's gain, does not fit the rows");
  }
  int64_t dims[8];
  std::memcpy(dims, x.dims, sizeof dims);
  dims[x.rank - 1] = out;
  float* result = static_cast<float*>(call.output(0, dims, x.rank));
  if (count == 0) return nullptr;

  thread_local Rows rows;  // of the calling thread; its memory is kept from call to call
  rows.resize(count, in);
  auto prepare = [&, rows = &rows](int64_t row) {
    const float* from = x.as<float>() + row * given;
    float* scratch = rows->scratch.data() + row * in;
    if constexpr (kBefore == Before::kNorm) {
      norm(from, last.as<float>(), in, call.attribute(), scratch);
    } else if constexpr (kBefore == Before::kSwiGlu) {
      swiglu_row(from, in, scratch);
    } else {
      std::memcpy(scratch, from, in * sizeof(float));
    }
    Entry* entries = reinterpret_cast<Entry*>(scratch);  // they take the place of floats that were read
    quantise(scratch, in, block, entries, &rows->scales[row], &rows->offsets[row]);
    // beside those of the rows that go through the weights with it
    const int64_t passes = passes_for(count), pass = ((row + 1) * passes - 1) / count;
    const int64_t first = count * pass / passes, many = count * (pass + 1) / passes - first;
    Entry* to = rows->entries.data() + first * in + (row - first) * kSide;
    for (int64_t n = 0; n < in; n += kSide) std::memcpy(to + n * many, entries + n, kSide * sizeof(Entry));
  };
  const uint8_t* bytes = call.kept() ? static_cast<const uint8_t*>(call.kept()) : weight.as<uint8_t>();
  const float* residual = kAdd ? last.as<float>() : nullptr;
  const Product<true> streaming{bytes, scales.as<float>(), residual, &rows, in, out, result};
  const Product<false> staying{bytes, scales.as<float>(), residual, &rows, in, out, result};
  // tasks large enough to be worth handing out, many enough to even out
  const int64_t wide = count <= kFew ? 1 : kBlocks, blocks = out / kLanes;
  const int64_t each = std::max<int64_t>(1, std::min(blocks / wide / 16, (1 << 18) / (in * kLanes * wide))) * wide;
  const int64_t parts = count * in <= kAlone ? 1 : std::min<int64_t>(count, 8), tasks = (blocks + each - 1) / each;
  auto multiply = [&](int64_t task, const auto& product) {
    const int64_t last = std::min<int64_t>(blocks, (task + 1) * each);
    for (int64_t block = task * each; block < last; block += wide) {
      if (wide == 1 || last - block == 1) {
        product.template every_row<1>(count, block);
      } else {
        product.template every_row<kBlocks>(count, block);
      }
    }
  };
  // Whoever takes up work first helps to prepare rows, and no product begins before all are ready: one hand-out serves both. Parts
  // are claimed, so whoever waits, waits for work that somebody is doing.
  std::atomic<int64_t> claimed{0}, ready{0};
  auto work = [&](size_t task) {
    for (int64_t part; claimed.load(std::memory_order_relaxed) < parts && (part = claimed.fetch_add(1)) < parts; ready.fetch_add(1)) {
      for (int64_t row = count * part / parts; row < count * (part + 1) / parts; ++row) prepare(row);
    }
    while (ready.load(std::memory_order_acquire) < parts) _mm_pause();
    call.streams() ? multiply(task, streaming) : multiply(task, staying);
  };
  call.parallel(tasks, work);
  return nullptr;
}

template ort::Status* row_product<Before::kNothing, false>(const Call& call);
template ort::Status* row_product<Before::kNothing, true>(const Call& call);
template ort::Status* row_product<Before::kNorm, false>(const Call& call);
template ort::Status* row_product<Before::kSwiGlu, false>(const Call& call);
template ort::Status* row_product<Before::kSwiGlu, true>(const Call& call);

}  // namespace jakiro
