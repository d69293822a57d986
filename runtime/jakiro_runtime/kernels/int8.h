// int8 weights, one scale per output channel; activations rotated and quantized per row.
//
//     weight [out / 16, in / 4, 16, 4]: uint8 with zero point 128; scales [out]
//
// Why this layout: a tile of 16 outputs and 4 inputs is one load of 64 bytes, and AVX-512 VNNI multiplies its 4 inputs with 4
// signed bytes of a row in one instruction. AVX2 has no such product without saturation, so there the activations are int16 and
// the weights are widened as they are loaded: the even and the odd bytes of a register are two halves of the same sums, and a
// row's entries are stored in that order. Both builds compute the same integers, which are exact.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "call.h"
#include "prepacked_weight.h"
#include "simd_int.h"

namespace jakiro {

class Int8 {
 public:
  static constexpr size_t kInputs = 4;  // x, rotation, weight, scales
#if JAKIRO_AVX512
  using Entry = int8_t;                // a quantized activation
  static constexpr int kMaxRows = 12;  // rows of a pass: their accumulators, the weights and a row's entries fit the registers
  static constexpr int kBlocks = 2;    // blocks of 16 outputs in a pass, for more rows than kMemoryBoundRows
  static constexpr int kMemoryBoundRows = 8;  // up to so few rows the GEMM is memory bound: one block at a time, in memory order
#else
  using Entry = int16_t;
  static constexpr int kMaxRows = 5, kBlocks = 1, kMemoryBoundRows = 0;
#endif

  // Quantized activations of one call.
  struct Rows {
    std::vector<Entry> entries;    // per pass [in / 4, rows of the pass, 4]
    std::vector<float> scales;     // [rows]
    std::vector<int32_t> offsets;  // [rows], 128 times the sum of a row's entries: the zero point's part of every dot product

    void resize(int64_t rows, int64_t in) {
      if (static_cast<int64_t>(entries.size()) < rows * in) entries.resize(rows * in);
      if (static_cast<int64_t>(scales.size()) < rows) scales.resize(rows), offsets.resize(rows);
    }
  };

  // Throws a Refusal unless the weights' inputs have the shapes above and fit rows of `in` entries.
  Int8(const Call& call, int64_t in) : in_(in) {
    Dim block{"block", 1}, blocks{"out / 16", 1}, quads{"in / 4", 1};
    call.input(1, block, block);
    const Tensor weight = weight_of(call, blocks, quads);
    Dim out = fixed(blocks * kLanes);
    scales_ = call.input(3, out).as<float>();
    if (in > kMaxIn || quads * kQuad != in) {
      call.refuse("input weight has ", quads * kQuad, " inputs, expected the ", in, " of a row, at most ", kMaxIn);
    }
    if ((block & (block - 1)) != 0 || in % block != 0) {
      call.refuse("input rotation has a block of ", block, ", expected a power of two that divides ", in);
    }
    rotation_block_ = block, out_ = out;
    blocks_ = call.prepacked() ? static_cast<const uint8_t*>(call.prepacked()) : weight.as<uint8_t>();
  }
  // Throws a Refusal for constant weights of another shape.
  static PrepackedWeight prepack(const Constants& constants) {
    if (!constants.has(2)) return {};
    Dim blocks{"out / 16", 1}, quads{"in / 4", 1};
    const Tensor weight = weight_of(constants, blocks, quads);
    return copy_to_large_pages(weight.data, weight.count());
  }

  int64_t out() const { return out_; }
  int64_t block_bytes() const { return in_ / kQuad * kLanes * kQuad; }
  const uint8_t* block(int64_t n) const { return blocks_ + n * block_bytes(); }

  // Quantizes a row [in], which is overwritten, as row `index` of the `pass_rows` rows of a pass that begins at row `first`.
  void quantize(float* row, int64_t first, int64_t index, int64_t pass_rows, Rows& rows) const;

  // kRows rows from `first` on times kWide blocks: [row][block], 16 outputs each. Meanwhile it prefetches `fetch` bytes from
  // `next` on, a few lines with every step, so that memory latency hides behind the arithmetic. kNonTemporal: into L1 only, since
  // weights that do not fit the LLC would evict what is read again: keys, values, the draft model.
  template <int kRows, int kWide, bool kNonTemporal>
  void multiply(const Rows& rows, int64_t first, int64_t block, const uint8_t* next, int64_t fetch,
                Floats (&result)[kRows][kWide]) const;

 private:
  static constexpr int64_t kQuad = 4;                         // inputs of a tile
  static constexpr int64_t kMaxIn = INT32_MAX / (128 * 127);  // for which a dot product fits its 32 bits
  static constexpr int kOrder[kQuad] = {0, JAKIRO_AVX512 ? 1 : 2, JAKIRO_AVX512 ? 2 : 1, 3};  // position of each of four entries
  static void store_entries(Entry* to, Ints x);

  // The weights among the inputs of a call, or among a node's constants.
  template <typename Inputs>
  static Tensor weight_of(const Inputs& inputs, Dim& blocks, Dim& quads) {
    Dim lanes = fixed(kLanes), quad = fixed(kQuad);
    return inputs.input(2, blocks, quads, lanes, quad);
  }

  // A tile of weights: [16 outputs, 4 inputs].
  struct Weights;
  // Four entries of a row, broadcast to every output.
  struct Four;
  static void add_product(Ints& sum, const Weights& weights, const Four& four);

  int64_t in_, out_, rotation_block_;
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
inline void Int8::add_product(Ints& sum, const Weights& weights, const Four& four) { dot_bytes(sum, weights.v, four.v); }

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
  // GCC's own choice copies every accumulator and spills
  const auto add = [](__m256i& sum, __m256i product) { asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(product)); };
  add(sum.low, _mm256_madd_epi16(weights.low_even, four.even));
  add(sum.high, _mm256_madd_epi16(weights.high_even, four.even));
  add(sum.low, _mm256_madd_epi16(weights.low_odd, four.odd));
  add(sum.high, _mm256_madd_epi16(weights.high_odd, four.odd));
}

#endif

template <int kRows, int kWide, bool kNonTemporal>
void Int8::multiply(const Rows& rows, int64_t first, int64_t block, const uint8_t* next, int64_t fetch,
                    Floats (&result)[kRows][kWide]) const {
  const int64_t quads = in_ / kQuad,
                step = (fetch + quads * 64 - 1) / (quads * 64) * 64;  // bytes to prefetch per quad, in cache lines
  const uint8_t* weight = this->block(block);
  const Entry* entries = rows.entries.data() + first * in_;
  Ints sum[kRows][kWide];  // in registers, so every loop over them is unrolled
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int b = 0; b < kWide; ++b) sum[r][b] = zero();
  }
  for (int64_t quad = 0; quad < quads; ++quad) {
    for (int64_t line = 0; line < step; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(next + quad * step + line), kNonTemporal ? _MM_HINT_NTA : _MM_HINT_T0);
    }
    Weights w[kWide];
#pragma GCC unroll 2
    for (int b = 0; b < kWide; ++b) w[b] = Weights(weight + (b * quads + quad) * 64);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const Four four(entries + (quad * kRows + r) * kQuad);
#pragma GCC unroll 2
      for (int b = 0; b < kWide; ++b) add_product(sum[r][b], w[b], four);
    }
  }
#pragma GCC unroll 2
  for (int b = 0; b < kWide; ++b) {
    const Floats scale = load(scales_ + (block + b) * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      result[r][b] = to_float(sum[r][b], rows.offsets[first + r]) * broadcast(rows.scales[first + r]) * scale;
    }
  }
}

}  // namespace jakiro
