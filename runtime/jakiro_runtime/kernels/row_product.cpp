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
// the row. The layout puts the bytes of 16 outputs and 4 inputs side by side, which is what one AVX-512 VNNI instruction eats:
// each weight is loaded once for up to 12 rows, in the order it lies in memory. With few rows the weights' bytes are the cost.
#include "row_product.h"

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <utility>

#include "layers.h"

namespace jakiro {
namespace {

constexpr int64_t kLanes = 16;  // outputs side by side
constexpr int64_t kSide = 4;    // inputs side by side
constexpr int64_t kMost = 12;        // rows of one pass: their sums over two blocks, the weights and a row's entries fit the registers
constexpr int64_t kFew = 8;          // rows for which the memory is the bound: one block at a time, in the order it lies
constexpr int64_t kAhead = 1 << 13;  // bytes between what is multiplied and what is fetched
constexpr int64_t kAlone = 1 << 11;  // entries below which one thread prepares the rows

// 16 floats, butterflies between lanes whose numbers differ in one bit
template <int kBit>
inline __m512 butterfly(__m512 x) {
  __m512 other;
  if constexpr (kBit == 1) {
    other = _mm512_permute_ps(x, 0xB1);
  } else if constexpr (kBit == 2) {
    other = _mm512_permute_ps(x, 0x4E);
  } else if constexpr (kBit == 4) {
    other = _mm512_shuffle_f32x4(x, x, 0xB1);
  } else {
    other = _mm512_shuffle_f32x4(x, x, 0x4E);
  }
  constexpr __mmask16 kUpper = kBit == 1 ? 0xAAAA : kBit == 2 ? 0xCCCC : kBit == 4 ? 0xF0F0 : 0xFF00;
  return _mm512_mask_sub_ps(_mm512_add_ps(x, other), kUpper, other, x);
}

void rotate_64(float* x) {
  __m512 r[4];
  for (int n = 0; n < 4; ++n) {
    r[n] = butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(_mm512_loadu_ps(x + 16 * n)))));
  }
  const __m512 scale = _mm512_set1_ps(0.125f);
  const __m512 a = _mm512_add_ps(r[0], r[1]), b = _mm512_sub_ps(r[0], r[1]);
  const __m512 c = _mm512_add_ps(r[2], r[3]), d = _mm512_sub_ps(r[2], r[3]);
  _mm512_storeu_ps(x, _mm512_mul_ps(_mm512_add_ps(a, c), scale));
  _mm512_storeu_ps(x + 16, _mm512_mul_ps(_mm512_add_ps(b, d), scale));
  _mm512_storeu_ps(x + 32, _mm512_mul_ps(_mm512_sub_ps(a, c), scale));
  _mm512_storeu_ps(x + 48, _mm512_mul_ps(_mm512_sub_ps(b, d), scale));
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

// sum += weight times x, four bytes a lane. GCC's intrinsic keeps a second copy of every sum, which costs half the speed.
inline void add_product(__m512i& sum, __m512i weight, __m512i x) { asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weight), "v"(x)); }

// kRows rows times kBlocks blocks of 16 outputs. rows: [in / 4, kRows, 4], so that one address serves them all; quads: in / 4. While it multiplies, it fetches the `fetch`
// bytes from `next` on, a little with every quad: what the memory brings while the arithmetic lasts is free. kStreams: into the first
// cache alone, since weights that do not fit the last one would only empty it of what is needed again: keys, values, the draft.
template <int kRows, int kBlocks, bool kStreams>
void multiply_blocks(const uint8_t* weight, const int8_t* rows, int64_t quads, const uint8_t* next, int64_t fetch,
                     __m512i (&sums)[kRows][kBlocks]) {
  __m512i sum[kRows][kBlocks];  // in registers: every loop over them is unrolled
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) sum[r][b] = _mm512_setzero_si512();
  }
  const int64_t step = (fetch + quads * 64 - 1) / (quads * 64) * 64;  // bytes to fetch a quad, whole lines
  for (int64_t quad = 0; quad < quads; ++quad) {
    __m512i w[kBlocks];
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) w[b] = _mm512_loadu_si512(weight + (b * quads + quad) * 64);
    for (int64_t line = 0; line < step; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(next + quad * step + line), kStreams ? _MM_HINT_NTA : _MM_HINT_T0);
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      int32_t four;
      std::memcpy(&four, rows + (quad * kRows + r) * kSide, 4);
      const __m512i x = _mm512_set1_epi32(four);
#pragma GCC unroll 2
      for (int b = 0; b < kBlocks; ++b) add_product(sum[r][b], w[b], x);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) sums[r][b] = sum[r][b];
  }
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

  template <int kRows, int kBlocks>
  void some(int64_t first, int64_t block, const uint8_t* next, int64_t fetch) const {
    __m512i sums[kRows][kBlocks];
    const int64_t quads = in / kSide;
    multiply_blocks<kRows, kBlocks, kStreams>(weight + block * quads * 64, rows->bytes.data() + first * in, quads, next, fetch, sums);
    for (int b = 0; b < kBlocks; ++b) {
      const __m512 scale = _mm512_loadu_ps(scales + (block + b) * kLanes);
      for (int r = 0; r < kRows; ++r) {
        const int64_t at = (first + r) * out + (block + b) * kLanes;
        const __m512i sum = _mm512_sub_epi32(sums[r][b], _mm512_set1_epi32(rows->offsets[first + r]));
        __m512 y = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(rows->scales[first + r])), scale);
        if (residual != nullptr) y = _mm512_add_ps(y, _mm512_loadu_ps(residual + at));
        _mm512_storeu_ps(result + at, y);
      }
    }
  }

  // kBlocks blocks for `count` rows. One pass of one block fetches a little ahead of itself; otherwise each pass fetches its part of
  // the blocks that come after these.
  template <int kBlocks>
  void every_row(int64_t count, int64_t block) const {
    const int64_t bytes = in / kSide * 64, passes = passes_for(count);
    const uint8_t* start = weight + block * bytes;
    if (kBlocks == 1 && passes == 1) return (this->*kPasses<1>[count - 1])(0, block, start + std::min(bytes, kAhead), bytes);
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t first = count * pass / passes, last = count * (pass + 1) / passes, lines = kBlocks * bytes / 64;
      const int64_t from = lines * pass / passes * 64, to = lines * (pass + 1) / passes * 64;
      (this->*kPasses<kBlocks>[last - first - 1])(first, block, start + kBlocks * bytes + from, to - from);
    }
  }

  using Pass = void (Product::*)(int64_t, int64_t, const uint8_t*, int64_t) const;
  template <int kBlocks, size_t... kCounts>
  static constexpr std::array<Pass, kMost> passes_of(std::index_sequence<kCounts...>) {
    return {&Product::some<static_cast<int>(kCounts) + 1, kBlocks>...};
  }
  template <int kBlocks>
  static constexpr std::array<Pass, kMost> kPasses = passes_of<kBlocks>(std::make_index_sequence<kMost>());
};

float largest_of(const float* x, int64_t count) {
  float largest = 0x1p-100f;  // a row of zeros is divided by this
  int64_t n = 0;
  __m512 most = _mm512_set1_ps(largest);
  for (; n + 16 <= count; n += 16) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(x + n)));
  largest = _mm512_reduce_max_ps(most);
  for (; n < count; ++n) largest = std::max(largest, std::fabs(x[n]));
  return largest;
}

// A row rotated in place, then as bytes.
void quantise(float* scratch, int64_t in, int64_t block, int8_t* bytes, float* scale, int32_t* offset) {
  for (int64_t start = 0; start < in; start += block) rotate(scratch + start, block);
  const float largest = largest_of(scratch, in);
  *scale = largest / 127.0f;
  const float steps = 127.0f / largest;
  const __m512 by = _mm512_set1_ps(steps);
  __m512i sums = _mm512_setzero_si512();
  int64_t n = 0;
  for (; n + 16 <= in; n += 16) {
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(scratch + n), by));
    sums = _mm512_add_epi32(sums, rounded);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + n), _mm512_cvtsepi32_epi8(rounded));
  }
  int32_t sum = _mm512_reduce_add_epi32(sums);
  for (; n < in; ++n) {
    const int32_t rounded = static_cast<int32_t>(std::nearbyint(scratch[n] * steps));
    bytes[n] = static_cast<int8_t>(rounded);
    sum += rounded;
  }
  *offset = 128 * sum;
}

// RMSNormalization of a row over all its entries.
void norm(const float* x, const float* gain, int64_t in, float epsilon, float* out) {
  __m512 squares = _mm512_setzero_ps();
  int64_t n = 0;
  for (; n + 16 <= in; n += 16) {
    const __m512 each = _mm512_loadu_ps(x + n);
    squares = _mm512_fmadd_ps(each, each, squares);
  }
  float sum = _mm512_reduce_add_ps(squares);
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
    int8_t* bytes = reinterpret_cast<int8_t*>(scratch);  // a row's bytes take the place of floats that were read
    quantise(scratch, in, block, bytes, &rows->scales[row], &rows->offsets[row]);
    // beside those of the rows that go through the weights with it
    const int64_t passes = passes_for(count), pass = ((row + 1) * passes - 1) / count;
    const int64_t first = count * pass / passes, many = count * (pass + 1) / passes - first;
    int8_t* to = rows->bytes.data() + first * in + (row - first) * kSide;
    for (int64_t n = 0; n < in; n += kSide) std::memcpy(to + n * many, bytes + n, kSide);
  };
  const uint8_t* bytes = call.kept() ? static_cast<const uint8_t*>(call.kept()) : weight.as<uint8_t>();
  const float* residual = kAdd ? last.as<float>() : nullptr;
  const Product<true> streaming{bytes, scales.as<float>(), residual, &rows, in, out, result};
  const Product<false> staying{bytes, scales.as<float>(), residual, &rows, in, out, result};
  // tasks large enough to be worth handing out, many enough to even out
  const int64_t wide = count <= kFew ? 1 : 2, blocks = out / kLanes;
  const int64_t each = std::max<int64_t>(1, std::min(blocks / wide / 16, (1 << 18) / (in * kLanes * wide))) * wide;
  const int64_t parts = count * in <= kAlone ? 1 : std::min<int64_t>(count, 8), tasks = (blocks + each - 1) / each;
  auto multiply = [&](int64_t task, const auto& product) {
    const int64_t last = std::min<int64_t>(blocks, (task + 1) * each);
    for (int64_t block = task * each; block < last; block += wide) {
      if (wide == 1 || last - block == 1) {
        product.template every_row<1>(count, block);
      } else {
        product.template every_row<2>(count, block);
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
