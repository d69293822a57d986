// Weights in bytes, a scale for each output; rows rotated, then in whole numbers with one scale for each.
//
//     weight [out / 16, in / 4, 16, 4]: unsigned bytes around 128; scales [out]
//
// The bytes of 16 outputs and 4 inputs lie side by side. AVX-512 VNNI multiplies four of them with four signed bytes of a row in one
// instruction. AVX2 has no such product without saturation, so rows are 16 bits wide there and weights are widened as they are
// loaded: the even and the odd bytes of a register are two halves of the same sums, and a row's entries lie in that order. The sums
// are the same integers, and exact.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "simd_int.h"
#include "prepacked_weight.h"
#include "tensor.h"

namespace jakiro {

class Int8 {
 public:
  static constexpr size_t kInputs = 4;  // x, rotation, weight, scales
#if JAKIRO_AVX512
  using Entry = int8_t;              // of a row
  static constexpr int kMost = 12;   // rows of one pass: their sums over the blocks, the weights and a row's entries fit the registers
  static constexpr int kBlocks = 2;  // of 16 outputs in one pass, where there are more rows than kFew
  static constexpr int kFew = 8;     // rows for which the memory is the bound: one block at a time, in the order it lies
#else
  using Entry = int16_t;
  static constexpr int kMost = 5, kBlocks = 1, kFew = 0;
#endif

  // Quantised rows of one call.
  struct Rows {
    std::vector<Entry> entries;    // for each pass [in / 4, its rows, 4]
    std::vector<float> scales;     // [rows]
    std::vector<int32_t> offsets;  // [rows], 128 times the sum of a row's entries: what unsigned weights add to every sum

    void resize(int64_t rows, int64_t in) {
      if (static_cast<int64_t>(entries.size()) < rows * in) entries.resize(rows * in);
      if (static_cast<int64_t>(scales.size()) < rows) scales.resize(rows), offsets.resize(rows);
    }
  };

  Int8(const Call& call, int64_t in) : in_(in) {
    const Tensor rotation = call.input(1), weight = call.input(2), scales = call.input(3);
    fits_ = weight.rank == 4 && weight.dims[0] * kLanes == scales.dims[0] && weight.dims[1] * kSide == in && in % rotation.dims[0] == 0;
    turned_ = rotation.dims[0], out_ = scales.dims[0];
    blocks_ = call.kept() ? static_cast<const uint8_t*>(call.kept()) : weight.as<uint8_t>();
    scales_ = scales.as<float>();
  }
  static Kept keep(const Constants& constants) {
    const Tensor weight = constants.input(2);
    return weight.data == nullptr ? Kept{} : jakiro::keep(weight.data, weight.count());
  }

  bool fits() const { return fits_; }
  int64_t out() const { return out_; }
  int64_t block_bytes() const { return in_ / kSide * kLanes * kSide; }
  const uint8_t* block(int64_t n) const { return blocks_ + n * block_bytes(); }

  // A row [in], which is overwritten, as row `place` of the `many` rows of a pass that begins at row `first`.
  void quantise(float* row, int64_t first, int64_t place, int64_t many, Rows& rows) const;

  // kRows rows from `first` on times kWide blocks: [row][block], 16 outputs each. While it multiplies, it fetches the `fetch` bytes
  // from `next` on, a little with every step: what the memory brings while the arithmetic lasts is free. kStreams: into the first
  // cache alone, since weights that do not fit the last one would only empty it of what is needed again: keys, values, the draft.
  template <int kRows, int kWide, bool kStreams>
  void multiply(const Rows& rows, int64_t first, int64_t block, const uint8_t* next, int64_t fetch, Floats (&result)[kRows][kWide]) const;

 private:
  static constexpr int64_t kSide = 4;  // inputs side by side
  static constexpr int kPlace[kSide] = {0, JAKIRO_AVX512 ? 1 : 2, JAKIRO_AVX512 ? 2 : 1, 3};  // of an entry among the four
  static void store_entries(Entry* to, Ints x);

  // What is multiplied with a row's four entries: [output, 4].
  struct Weights;
  // A row's four entries, for every output.
  struct Four;
  static void add_product(Ints& sum, const Weights& weights, const Four& four);

  bool fits_;
  int64_t in_, out_, turned_;
  const uint8_t* blocks_;
  const float* scales_;
};

#if JAKIRO_AVX512

struct Int8::Weights {
  __m512i v;
  Weights() = default;
  explicit Weights(const uint8_t* p) : v(_mm512_loadu_si512(p)) {}
};

struct Int8::Four {
  __m512i v;
  explicit Four(const Entry* p) {
    int32_t x;
    std::memcpy(&x, p, sizeof x);
    v = _mm512_set1_epi32(x);
  }
};

inline void Int8::store_entries(Entry* to, Ints x) { store_bytes(to, x); }
inline void Int8::add_product(Ints& sum, const Weights& weights, const Four& four) { add_bytes(sum, weights.v, four.v); }

#else

struct Int8::Weights {
  __m256i low_even, low_odd, high_even, high_odd;
  Weights() = default;
  explicit Weights(const uint8_t* p) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), byte = _mm256_set1_epi16(0xFF);
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32));
    low_even = _mm256_and_si256(low, byte), low_odd = _mm256_srli_epi16(low, 8);
    high_even = _mm256_and_si256(high, byte), high_odd = _mm256_srli_epi16(high, 8);
  }
};

struct Int8::Four {
  __m256i even, odd;
  explicit Four(const Entry* p) {
    int32_t x, y;
    std::memcpy(&x, p, sizeof x), std::memcpy(&y, p + 2, sizeof y);
    even = _mm256_set1_epi32(x), odd = _mm256_set1_epi32(y);
  }
};

inline void Int8::store_entries(Entry* to, Ints x) {
  const __m256i narrow = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.low, x.high), 0xD8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(narrow, 0xD8), 0xD8));
}

inline void Int8::add_product(Ints& sum, const Weights& weights, const Four& four) {
  // left to itself GCC copies every sum, and runs out of registers
  const auto add = [](__m256i& sum, __m256i product) { asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(product)); };
  add(sum.low, _mm256_madd_epi16(weights.low_even, four.even));
  add(sum.high, _mm256_madd_epi16(weights.high_even, four.even));
  add(sum.low, _mm256_madd_epi16(weights.low_odd, four.odd));
  add(sum.high, _mm256_madd_epi16(weights.high_odd, four.odd));
}

#endif

template <int kRows, int kWide, bool kStreams>
void Int8::multiply(const Rows& rows, int64_t first, int64_t block, const uint8_t* next, int64_t fetch,
                    Floats (&result)[kRows][kWide]) const {
  const int64_t quads = in_ / kSide, step = (fetch + quads * 64 - 1) / (quads * 64) * 64;  // bytes to fetch a quad, whole lines
  const uint8_t* weight = this->block(block);
  const Entry* entries = rows.entries.data() + first * in_;
  Ints sum[kRows][kWide];  // in registers: every loop over them is unrolled
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int b = 0; b < kWide; ++b) sum[r][b] = nothing();
  }
  for (int64_t quad = 0; quad < quads; ++quad) {
    for (int64_t line = 0; line < step; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(next + quad * step + line), kStreams ? _MM_HINT_NTA : _MM_HINT_T0);
    }
    Weights w[kWide];
#pragma GCC unroll 2
    for (int b = 0; b < kWide; ++b) w[b] = Weights(weight + (b * quads + quad) * 64);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const Four four(entries + (quad * kRows + r) * kSide);
#pragma GCC unroll 2
      for (int b = 0; b < kWide; ++b) add_product(sum[r][b], w[b], four);
    }
  }
#pragma GCC unroll 2
  for (int b = 0; b < kWide; ++b) {
    const Floats scale = load(scales_ + (block + b) * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      result[r][b] = floats_of(sum[r][b], rows.offsets[first + r]) * all(rows.scales[first + r]) * scale;
    }
  }
}

}  // namespace jakiro
