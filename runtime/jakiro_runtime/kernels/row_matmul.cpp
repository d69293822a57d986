// RowInt8MatMul, RowInt4MatMul: rows quantised one by one, times weights in bytes or less; and what commonly stands around it.
//
//     RowInt8MatMul(x [..., in], rotation [block, block], weight, scales) -> [..., out]      int8.h
//     RowInt4MatMul(x [..., in], weight, scales, least) -> [..., out]                        int4.h
//     ...MatMulAdd(..., residual [..., out])     adds the residual
//     NormRow...MatMul(..., gain [in])           rows go through RMSNormalization first
//     SwiGluRow...MatMul(both [..., 2 in], ...)  rows go through SwiGlu first
//     SwiGluRow...MatMulAdd(both, ..., residual)
//
// `rotation` is the normalised Hadamard matrix, applied to each `block` entries of a row here by its fast transform. A row's result
// depends on nothing but the row: its integer sums are exact, and other sums have an order of their own. Each weight is loaded once for
// the rows of a pass, in the order it lies in memory. With few rows the weights' bytes are the cost.
#include "row_matmul.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <utility>

#include "layers.h"

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

// Rows go through a block in passes of alike size. Pass `n` begins at row first(n).
template <typename Format>
struct Passes {
  int64_t rows, count;
  explicit Passes(int64_t rows) : rows(rows), count((rows + Format::kMost - 1) / Format::kMost) {}
  int64_t first(int64_t pass) const { return rows * pass / count; }
  int64_t of(int64_t row) const { return ((row + 1) * count - 1) / rows; }
};

template <typename Format, bool kStreams>
struct Product {
  const Format& format;
  const typename Format::Rows& rows;
  const float* residual;
  float* result;

  template <int kRows, int kWide>
  void some(int64_t first, int64_t block, const uint8_t* next, int64_t fetch) const {
    Floats y[kRows][kWide];
    format.template multiply<kRows, kWide, kStreams>(rows, first, block, next, fetch, y);
    for (int r = 0; r < kRows; ++r) {
      for (int b = 0; b < kWide; ++b) {
        const int64_t at = (first + r) * format.out() + (block + b) * kLanes;
        if (residual != nullptr) y[r][b] = y[r][b] + load(residual + at);
        store(result + at, y[r][b]);
      }
    }
  }

  // kWide blocks for all rows. One pass of one block fetches a little ahead of itself; otherwise each pass fetches its part of the
  // blocks that come after these.
  template <int kWide>
  void every_row(const Passes<Format>& passes, int64_t block) const {
    const int64_t bytes = format.block_bytes();
    if (kWide == 1 && passes.count == 1) {
      return (this->*kPasses<1>[passes.rows - 1])(0, block, format.block(block) + std::min(bytes, kAhead), bytes);
    }
    const uint8_t* next = format.block(block + kWide);
    for (int64_t pass = 0; pass < passes.count; ++pass) {
      const int64_t first = passes.first(pass), lines = kWide * bytes / 64;
      const int64_t from = lines * pass / passes.count * 64, to = lines * (pass + 1) / passes.count * 64;
      (this->*kPasses<kWide>[passes.first(pass + 1) - first - 1])(first, block, next + from, to - from);
    }
  }

  using Pass = void (Product::*)(int64_t, int64_t, const uint8_t*, int64_t) const;
  template <int kWide, size_t... kCounts>
  static constexpr std::array<Pass, Format::kMost> passes_of(std::index_sequence<kCounts...>) {
    return {&Product::template some<static_cast<int>(kCounts) + 1, kWide>...};
  }
  template <int kWide>
  static constexpr std::array<Pass, Format::kMost> kPasses = passes_of<kWide>(std::make_index_sequence<Format::kMost>());
};

float largest_of(const float* x, int64_t count) {
  Floats most = all(0x1p-100f);  // a row of zeros is divided by this
  int64_t n = 0;
  for (; n + kLanes <= count; n += kLanes) most = larger(most, magnitude(load(x + n)));
  float largest = largest_of(most);
  for (; n < count; ++n) largest = std::max(largest, std::fabs(x[n]));
  return largest;
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

// Four entries at a time, beside those of the rows that go through the weights with this one.
template <typename Entry>
void lay(const Entry* from, int64_t in, int64_t many, Entry* to) {
  for (int64_t n = 0; n < in; n += 4) std::memcpy(to + n * many, from + n, 4 * sizeof(Entry));
}

}  // namespace

void Int8::quantise(float* row, int64_t first, int64_t place, int64_t many, Rows& rows) const {
  for (int64_t start = 0; start < in_; start += turned_) rotate(row + start, turned_);
  const float largest = largest_of(row, in_), steps = 127.0f / largest;
  Entry* entries = reinterpret_cast<Entry*>(row);  // they take the place of floats that were read
  Ints sums = nothing();
  int64_t n = 0;
  for (; n + kLanes <= in_; n += kLanes) {
    const Ints each = rounded(load(row + n) * all(steps));
    sums = sums + each;
    store_entries(entries + n, each);
  }
  int32_t sum = sum_of(sums);
  for (; n < in_; n += kSide) {
    Entry four[kSide];
    for (int64_t k = 0; k < kSide; ++k) {
      four[kPlace[k]] = static_cast<Entry>(std::nearbyint(row[n + k] * steps));
      sum += four[kPlace[k]];
    }
    std::memcpy(entries + n, four, sizeof four);
  }
  rows.scales[first + place] = largest / 127.0f;
  rows.offsets[first + place] = 128 * sum;
  lay(entries, in_, many, rows.entries.data() + first * in_ + place * kSide);
}

void Int4::quantise(float* row, int64_t first, int64_t place, int64_t many, Rows& rows) const {
  Entry* entries = reinterpret_cast<Entry*>(row);
  float* scales = rows.scales.data() + 2 * (first * (in_ / kGroup) + place);
  for (int64_t n = 0; n < in_; n += kGroup, scales += 2 * many) {
    const Floats a = load(row + n), b = load(row + n + kLanes);
    const float largest = std::max(0x1p-100f, largest_of(larger(magnitude(a), magnitude(b))));
    const Ints first_half = rounded(a * all(127.0f / largest)), second_half = rounded(b * all(127.0f / largest));
    store_bytes(entries + n, first_half);
    store_bytes(entries + n + kLanes, second_half);
    scales[0] = largest / 127.0f;
    scales[1] = scales[0] * static_cast<float>(sum_of(first_half + second_half));
  }
  lay(entries, in_, many, rows.entries.data() + first * in_ + place * kSide);
}

template <typename Format, Before kBefore, bool kAdd>
ort::Status* row_product(const Call& call) {
  const Tensor x = call.input(0), last = kAdd || kBefore == Before::kNorm ? call.input(Format::kInputs) : Tensor{};
  const int64_t given = x.dims[x.rank - 1], in = kBefore == Before::kSwiGlu ? given / 2 : given, count = given ? x.count() / given : 0;
  const Format format(call, in);
  if (!format.fits()) return call.fail("a product of quantised rows: weights, scales and rows do not fit together");
  if ((kAdd && last.count() != count * format.out()) || (kBefore == Before::kNorm && last.count() != in)) {
    return call.fail("a product of quantised rows: what is added, or the norm's gain, does not fit the rows");
  }
  int64_t dims[8];
  std::memcpy(dims, x.dims, sizeof dims);
  dims[x.rank - 1] = format.out();
  float* result = static_cast<float*>(call.output(0, dims, x.rank));
  if (count == 0) return nullptr;

  // of the calling thread; their memory is kept from call to call
  thread_local typename Format::Rows of_thread;
  thread_local std::vector<float> scratch_of_thread;
  typename Format::Rows& rows = of_thread;
  rows.resize(count, in);
  if (static_cast<int64_t>(scratch_of_thread.size()) < count * in) scratch_of_thread.resize(count * in);
  const Passes<Format> passes(count);
  auto prepare = [&, scratches = scratch_of_thread.data()](int64_t row) {
    const float* from = x.as<float>() + row * given;
    float* scratch = scratches + row * in;
    if constexpr (kBefore == Before::kNorm) {
      norm(from, last.as<float>(), in, call.attribute(), scratch);
    } else if constexpr (kBefore == Before::kSwiGlu) {
      swiglu_row(from, in, scratch);
    } else {
      std::memcpy(scratch, from, in * sizeof(float));
    }
    const int64_t pass = passes.of(row), first = passes.first(pass);
    format.quantise(scratch, first, row - first, passes.first(pass + 1) - first, rows);
  };
  const float* residual = kAdd ? last.as<float>() : nullptr;
  const Product<Format, true> streaming{format, rows, residual, result};
  const Product<Format, false> staying{format, rows, residual, result};
  // tasks large enough to be worth handing out, many enough to even out
  const int64_t wide = count <= Format::kFew ? 1 : Format::kBlocks, blocks = format.out() / kLanes;
  const int64_t each = std::max<int64_t>(1, std::min(blocks / wide / 16, (1 << 18) / (in * kLanes * wide))) * wide;
  const int64_t parts = count * in <= kAlone ? 1 : std::min<int64_t>(count, 8), tasks = (blocks + each - 1) / each;
  auto multiply = [&](int64_t task, const auto& product) {
    const int64_t last = std::min<int64_t>(blocks, (task + 1) * each);
    for (int64_t block = task * each; block < last; block += wide) {
      if (wide == 1 || last - block == 1) {
        product.template every_row<1>(passes, block);
      } else {
        product.template every_row<Format::kBlocks>(passes, block);
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

template ort::Status* row_product<Int8, Before::kNothing, false>(const Call& call);
template ort::Status* row_product<Int8, Before::kNothing, true>(const Call& call);
template ort::Status* row_product<Int8, Before::kNorm, false>(const Call& call);
template ort::Status* row_product<Int8, Before::kSwiGlu, false>(const Call& call);
template ort::Status* row_product<Int8, Before::kSwiGlu, true>(const Call& call);
template ort::Status* row_product<Int4, Before::kNothing, false>(const Call& call);
template ort::Status* row_product<Int4, Before::kNothing, true>(const Call& call);
template ort::Status* row_product<Int4, Before::kNorm, false>(const Call& call);
template ort::Status* row_product<Int4, Before::kSwiGlu, false>(const Call& call);
template ort::Status* row_product<Int4, Before::kSwiGlu, true>(const Call& call);

}  // namespace jakiro
