// RowInt8MatMul: rows rotated, quantised to bytes one by one, multiplied by weights in bytes.
//
//     RowInt8MatMul(x [..., in], rotation [block, block], weight [out / 16, in / 4, 16, 4], scales [out]) -> [..., out]
//
// `rotation` is the normalised Hadamard matrix, applied to each `block` entries of a row here by its fast transform. Weights are
// unsigned bytes around 128, rows signed bytes; their sums are integers and exact, so that a row's result depends on nothing but
// the row. The layout puts the bytes of 16 outputs and 4 inputs side by side, which is what one AVX-512 VNNI instruction eats:
// each weight is loaded once for up to 8 rows, in the order it lies in memory. With few rows the weights' bytes are the cost.
#include "row_product.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace jakiro {
namespace {

constexpr int64_t kLanes = 16;  // outputs side by side
constexpr int64_t kSide = 4;    // inputs side by side
constexpr int64_t kAlone = 1 << 14;  // entries below which handing out work costs more than it gives

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

// kRows rows times kBlocks blocks of 16 outputs. quads: in / 4; rows lie `stride` bytes apart.
template <int kRows, int kBlocks>
void tile(const uint8_t* weight, const int8_t* rows, int64_t quads, int64_t stride, int32_t (*out)[kBlocks * kLanes]) {
  __m512i sums[kRows][kBlocks];  // in registers: every loop over them is unrolled
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int b = 0; b < kBlocks; ++b) sums[r][b] = _mm512_setzero_si512();
  }
  for (int64_t quad = 0; quad < quads; ++quad) {
    __m512i w[kBlocks];
#pragma GCC unroll 8
    for (int b = 0; b < kBlocks; ++b) {
      const uint8_t* at = weight + (b * quads + quad) * 64;
      w[b] = _mm512_loadu_si512(at);
      _mm_prefetch(reinterpret_cast<const char*>(at + kBlocks * quads * 64), _MM_HINT_T0);  // what the next tile will read
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      int32_t four;
      std::memcpy(&four, rows + r * stride + quad * kSide, 4);
      const __m512i x = _mm512_set1_epi32(four);
#pragma GCC unroll 8
      for (int b = 0; b < kBlocks; ++b) sums[r][b] = _mm512_dpbusd_epi32(sums[r][b], w[b], x);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int b = 0; b < kBlocks; ++b) _mm512_storeu_si512(out[r] + b * kLanes, sums[r][b]);
  }
}

struct Product {
  const uint8_t* weight;
  const float* scales;
  const Rows* rows;
  int64_t in, out;
  float* result;

  template <int kRows, int kBlocks>
  void some(int64_t first, int64_t block) const {
    int32_t sums[kRows][kBlocks * kLanes];
    const int64_t quads = in / kSide;
    tile<kRows, kBlocks>(weight + block * quads * 64, rows->bytes.data() + first * in, quads, in, sums);
    const float* scale = scales + block * kLanes;
    for (int r = 0; r < kRows; ++r) {
      const int32_t offset = rows->offsets[first + r];
      const float row = rows->scales[first + r];
      float* to = result + (first + r) * out + block * kLanes;
      for (int n = 0; n < kBlocks * kLanes; ++n) to[n] = static_cast<float>(sums[r][n] - offset) * row * scale[n];
    }
  }

  template <int kBlocks>
  void every_row(int64_t count, int64_t block) const {
    int64_t first = 0;
    for (; count - first >= 8; first += 8) some<8, kBlocks>(first, block);
    if (count - first >= 4) some<4, kBlocks>(first, block), first += 4;
    if (count - first >= 2) some<2, kBlocks>(first, block), first += 2;
    if (count - first >= 1) some<1, kBlocks>(first, block);
  }
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

}  // namespace

void quantise(const float* x, int64_t in, int64_t block, float* scratch, int8_t* bytes, float* scale, int32_t* offset) {
  std::memcpy(scratch, x, in * sizeof(float));
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

ort::Status* row_product(const Call& call) {
  const Tensor x = call.input(0), rotation = call.input(1), weight = call.input(2), scales = call.input(3);
  const int64_t in = x.dims[x.rank - 1], out = scales.dims[0], count = in ? x.count() / in : 0, block = rotation.dims[0];
  if (weight.rank != 4 || weight.dims[0] * kLanes != out || weight.dims[1] * kSide != in || in % block != 0) {
    return call.fail("RowInt8MatMul: weight, scales and rows do not fit together");
  }
  int64_t dims[8];
  std::memcpy(dims, x.dims, sizeof dims);
  dims[x.rank - 1] = out;
  float* result = static_cast<float*>(call.output(0, dims, x.rank));
  if (count == 0) return nullptr;

  thread_local Rows rows;  // of the calling thread; its memory is kept from call to call
  rows.resize(count, in);
  auto prepare = [&, rows = &rows](size_t row) {
    quantise(x.as<float>() + row * in, in, block, rows->scratch.data() + row * in, rows->bytes.data() + row * in,
             &rows->scales[row], &rows->offsets[row]);
  };
  if (count * in <= kAlone) {
    for (int64_t row = 0; row < count; ++row) prepare(row);
  } else {
    call.parallel(count, prepare);
  }

  const Product product{weight.as<uint8_t>(), scales.as<float>(), &rows, in, out, result};
  constexpr int64_t wide = 2;
  const int64_t blocks = out / kLanes, tiles = (blocks + wide - 1) / wide;
  // tasks large enough to be worth handing out, many enough to even out
  const int64_t each = std::max<int64_t>(1, std::min(tiles / 16, (1 << 18) / (in * wide * kLanes)));
  auto work = [&](size_t task) {
    for (int64_t tile = task * each; tile < std::min<int64_t>(tiles, (task + 1) * each); ++tile) {
      const int64_t first = tile * wide;
      if (blocks - first >= wide) {
        product.every_row<wide>(count, first);
      } else {
        product.every_row<1>(count, first);
      }
    }
  };
  call.parallel((tiles + each - 1) / each, work);
  return nullptr;
}

}  // namespace jakiro
