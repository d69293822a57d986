// int4 weights with a scale and a min per group of 32 inputs, as in GGUF's Q4_1; activations int8 with a scale per group.
//
//     weight [out / 16, in / 32, 4, 16, 4]: two weights a byte; scales, min [out / 16, in / 32, 16]: half precision
//
// A weight is min + scale * n, n from 0 to 15. A tile of 16 outputs and 8 inputs is one load of 64 bytes: inputs 0 to 3 in the
// low four bits, inputs 4 to 7 in the high ones, so that a mask and a shift give two operands for VNNI. Why sums over a group are
// integers: they are exact (on AVX2 in 16 bits: two lanes share 32 products of at most 15 * 127), and the float sums over groups
// run in their order, so that a row's result does not depend on the other rows of the call.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "prepacked_weight.h"
#include "simd_int.h"
#include "tensor.h"

namespace jakiro {

class Int4 {
 public:
  static constexpr size_t kInputs = 4;  // x, weight, scales, min
  static constexpr int kMaxRows = JAKIRO_AVX512 ? 12 : 5, kBlocks = 1, kMemoryBoundRows = 0;
  using Entry = int8_t;

  struct Rows {
    std::vector<Entry> entries;  // per pass [in / 4, rows of the pass, 4]
    std::vector<float> scales;   // per pass [in / 32, rows of the pass, 2]: the scale, and the scale times the sum of the entries

    void resize(int64_t rows, int64_t in) {
      if (static_cast<int64_t>(entries.size()) < rows * in) entries.resize(rows * in);
      if (static_cast<int64_t>(scales.size()) < 2 * rows * (in / kGroup)) scales.resize(2 * rows * (in / kGroup));
    }
  };

  Int4(const Call& call, int64_t in) : in_(in) {
    const Tensor weight = call.input(1), scales = call.input(2), min = call.input(3);
    fits_ = weight.rank == 5 && scales.rank == 3 && min.rank == 3 && weight.dims[1] * kGroup == in && in > 0;
    for (size_t axis = 0; axis < 2; ++axis)
      fits_ = fits_ && weight.dims[axis] == scales.dims[axis] && weight.dims[axis] == min.dims[axis];
    out_ = weight.dims[0] * kLanes;
    if (call.prepacked() != nullptr || !fits_) {
      blocks_ = static_cast<const uint8_t*>(call.prepacked());
    } else {
      packed_.resize(weight.count() / kNibbles * kTile);
      pack(weight, scales, min, packed_.data());
      blocks_ = packed_.data();
    }
  }
  static PrepackedWeight prepack(const Constants& constants) {
    const Tensor weight = constants.input(1), scales = constants.input(2), min = constants.input(3);
    const int64_t groups = weight.rank == 5 ? weight.dims[0] * weight.dims[1] : 0;
    const bool complete = weight.data && scales.data && min.data && weight.count() == groups * kNibbles &&
                          scales.count() == groups * kLanes && min.count() == groups * kLanes;
    if (!complete) return {};
    std::vector<uint8_t> packed(groups * kTile);
    pack(weight, scales, min, packed.data());
    return jakiro::copy_to_large_pages(packed.data(), packed.size());
  }

  bool fits() const { return fits_; }
  int64_t out() const { return out_; }
  int64_t block_bytes() const { return in_ / kGroup * kTile; }
  const uint8_t* block(int64_t n) const { return blocks_ + n * block_bytes(); }

  // As in Int8.
  void quantize(float* row, int64_t first, int64_t index, int64_t pass_rows, Rows& rows) const;
  template <int kRows, int kWide, bool kNonTemporal>
  void multiply(const Rows& rows, int64_t first, int64_t block, const uint8_t* next, int64_t fetch,
                Floats (&result)[kRows][kWide]) const;

 private:
  static constexpr int64_t kQuad = 4, kGroup = 32;
  static constexpr int64_t kNibbles = kLanes * kGroup / 2,
                           kTile = kNibbles + 4 * kLanes;  // bytes of a group: weights alone; with scales and min

  // Interleaves what is read together: the weights of a group, its scales, its min values.
  static void pack(const Tensor& weight, const Tensor& scales, const Tensor& min, uint8_t* to) {
    const int64_t groups = weight.count() / kNibbles;
    for (int64_t n = 0; n < groups; ++n, to += kTile) {
      std::memcpy(to, weight.as<uint8_t>() + n * kNibbles, kNibbles);
      std::memcpy(to + kNibbles, scales.as<uint16_t>() + n * kLanes, 2 * kLanes);
      std::memcpy(to + kNibbles + 2 * kLanes, min.as<uint16_t>() + n * kLanes, 2 * kLanes);
    }
  }

  // A group of weights times the entries of kRows rows [8, kRows, 4], added to sums.
  template <int kRows>
  static void add_group(const uint8_t* tile, const Entry* entries, const float* scales, Floats (&sums)[kRows]);

  bool fits_;
  int64_t in_, out_ = 0;
  const uint8_t* blocks_ = nullptr;
  std::vector<uint8_t> packed_;
};

#if JAKIRO_AVX512

template <int kRows>
inline void Int4::add_group(const uint8_t* tile, const Entry* entries, const float* scales, Floats (&sums)[kRows]) {
  const __m512i four_bits = _mm512_set1_epi8(15);
  Ints dots[kRows];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) dots[r] = zero();
#pragma GCC unroll 4
  for (int pair = 0; pair < 4; ++pair) {
    const __m512i both = _mm512_loadu_si512(tile + 64 * pair);
    const __m512i low = _mm512_and_si512(both, four_bits), high = _mm512_and_si512(_mm512_srli_epi16(both, 4), four_bits);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      int32_t x, y;
      std::memcpy(&x, entries + ((2 * pair) * kRows + r) * kQuad, sizeof x);
      std::memcpy(&y, entries + ((2 * pair + 1) * kRows + r) * kQuad, sizeof y);
      dot_bytes(dots[r], low, _mm512_set1_epi32(x));
      dot_bytes(dots[r], high, _mm512_set1_epi32(y));
    }
  }
  const Floats scale = load_half(tile + kNibbles), min = load_half(tile + kNibbles + 2 * kLanes);
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    sums[r] = fmadd(to_float(dots[r], 0), scale * broadcast(scales[2 * r]), sums[r]);
    sums[r] = fmadd(min, broadcast(scales[2 * r + 1]), sums[r]);
  }
}

#else

template <int kRows>
inline void Int4::add_group(const uint8_t* tile, const Entry* entries, const float* scales, Floats (&sums)[kRows]) {
  const __m256i four_bits = _mm256_set1_epi8(15);
  const auto add = [](__m256i& sum, __m256i product) { asm("vpaddw %1, %0, %0" : "+x"(sum) : "x"(product)); };
  __m256i dots[kRows][2];  // 8 outputs each, two int16 lanes per output
#pragma GCC unroll 4
  for (int pair = 0; pair < 4; ++pair) {
    asm volatile("" ::: "memory");  // or GCC hoists the loads and spills
    __m256i low[2], high[2];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile + 64 * pair + 32 * half));
      low[half] = _mm256_and_si256(both, four_bits), high[half] = _mm256_and_si256(_mm256_srli_epi16(both, 4), four_bits);
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      int32_t x, y;
      std::memcpy(&x, entries + ((2 * pair) * kRows + r) * kQuad, sizeof x);
      std::memcpy(&y, entries + ((2 * pair + 1) * kRows + r) * kQuad, sizeof y);
      const __m256i first = _mm256_set1_epi32(x), second = _mm256_set1_epi32(y);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const __m256i product = _mm256_maddubs_epi16(low[half], first);
        if (pair == 0) {
          dots[r][half] = product;
        } else {
          add(dots[r][half], product);
        }
        add(dots[r][half], _mm256_maddubs_epi16(high[half], second));
      }
    }
  }
  const Floats scale = load_half(tile + kNibbles), min = load_half(tile + kNibbles + 2 * kLanes);
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    const Floats dot{_mm256_cvtepi32_ps(_mm256_madd_epi16(dots[r][0], ones)),
                     _mm256_cvtepi32_ps(_mm256_madd_epi16(dots[r][1], ones))};
    sums[r] = fmadd(dot, scale * broadcast(scales[2 * r]), sums[r]);
    sums[r] = fmadd(min, broadcast(scales[2 * r + 1]), sums[r]);
  }
}

#endif

template <int kRows, int kWide, bool kNonTemporal>
void Int4::multiply(const Rows& rows, int64_t first, int64_t block, const uint8_t* next, int64_t fetch,
                    Floats (&result)[kRows][kWide]) const {
  static_assert(kWide == 1, "one block is all that the registers hold");
  const int64_t groups = in_ / kGroup,
                step = (fetch + groups * 64 - 1) / (groups * 64) * 64;  // bytes to prefetch per group, in cache lines
  const uint8_t* tile = this->block(block);
  const Entry* entries = rows.entries.data() + first * in_;
  const float* scales = rows.scales.data() + 2 * first * groups;
  Floats sums[kRows];
  for (int r = 0; r < kRows; ++r) sums[r] = broadcast(0.0f);
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t line = 0; line < step; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(next + group * step + line), kNonTemporal ? _MM_HINT_NTA : _MM_HINT_T0);
    }
    add_group<kRows>(tile + group * kTile, entries + group * kGroup * kRows, scales + 2 * group * kRows, sums);
  }
  for (int r = 0; r < kRows; ++r) result[r][0] = sums[r];
}

}  // namespace jakiro
