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

#include "call.h"
#include "prepacked_weight.h"
#include "simd_int.h"

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

  // Throws a Refusal unless the weights' inputs have the shapes above and fit rows of `in` entries.
  Int4(const Call& call, int64_t in) : in_(in) {
    const Parts parts(call);
    if (parts.groups * kGroup != in) {
      call.refuse("input weight has ", parts.groups * kGroup, " inputs, expected the ", in, " of a row");
    }
    out_ = parts.blocks * kLanes;
    if (call.prepacked() == nullptr) packed_ = parts.pack();
    blocks_ = call.prepacked() != nullptr ? static_cast<const uint8_t*>(call.prepacked()) : packed_.data();
  }
  // Throws a Refusal for constant weights of another shape.
  static PrepackedWeight prepack(const Constants& constants) {
    if (!constants.has(1) || !constants.has(2) || !constants.has(3)) return {};
    const std::vector<uint8_t> packed = Parts(constants).pack();
    return copy_to_large_pages(packed.data(), packed.size());
  }

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
  static constexpr int64_t kNibbles = kLanes * kGroup / 2;  // bytes of a group's weights
  static constexpr int64_t kTile = kNibbles + 4 * kLanes;   // with its scales and mins

  // The weights, scales and mins among the inputs of a call, or among a node's constants.
  struct Parts {
    Dim blocks{"out / 16", 1}, groups{"in / 32", 1};
    const uint8_t* weight;
    const uint16_t *scales, *min;

    template <typename Inputs>
    explicit Parts(const Inputs& inputs) {
      Dim lanes = fixed(kLanes), quad = fixed(kQuad);
      weight = inputs.input(1, blocks, groups, quad, lanes, quad).template as<uint8_t>();
      scales = inputs.input(2, blocks, groups, lanes).template as<uint16_t>();
      min = inputs.input(3, blocks, groups, lanes).template as<uint16_t>();
    }

    // Interleaves what is read together: the weights of a group, its scales, its mins.
    std::vector<uint8_t> pack() const {
      const int64_t count = blocks * groups;
      std::vector<uint8_t> packed(count * kTile);
      uint8_t* to = packed.data();
      for (int64_t n = 0; n < count; ++n, to += kTile) {
        std::memcpy(to, weight + n * kNibbles, kNibbles);
        std::memcpy(to + kNibbles, scales + n * kLanes, 2 * kLanes);
        std::memcpy(to + kNibbles + 2 * kLanes, min + n * kLanes, 2 * kLanes);
      }
      return packed;
    }
  };

  // A group of weights times the entries of kRows rows [8, kRows, 4], added to sums.
  template <int kRows>
  static void add_group(const uint8_t* tile, const Entry* entries, const float* scales, Floats (&sums)[kRows]);

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
