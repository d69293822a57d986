// Rows of whole numbers times blocks of weights, on either instruction set: what a product of bytes does innermost.
//
// Weights [in / 4, 16, 4] are unsigned bytes: those of 16 outputs and 4 inputs lie side by side. AVX-512 VNNI multiplies four of them
// with four signed bytes of a row in one instruction. AVX2 has no such product without saturation, so rows are 16 bits wide there
// and weights are widened as they are loaded: the even and the odd bytes of a register are two halves of the same sums, and a row's
// entries lie in that order. The sums are the same integers.
#pragma once

#include <cstring>

#include "vector.h"

namespace jakiro {

constexpr int64_t kSide = 4;  // inputs side by side

#if JAKIRO_AVX512

using Entry = int8_t;  // of a row
constexpr int kPlace[kSide] = {0, 1, 2, 3};  // of an entry among the four
constexpr int64_t kMost = 12;  // rows of one pass: their sums over the blocks, the weights and a row's entries fit the registers
constexpr int kBlocks = 2;     // of one pass, where there are more rows than kFew
constexpr int64_t kFew = 8;    // rows for which the memory is the bound: one block at a time, in the order it lies

struct Ints {
  __m512i v;
};

inline Ints nothing() { return {_mm512_setzero_si512()}; }
inline Ints rounded(Floats x) { return {_mm512_cvtps_epi32(x.v)}; }
inline Ints operator+(Ints x, Ints y) { return {_mm512_add_epi32(x.v, y.v)}; }
inline int32_t sum_of(Ints x) { return _mm512_reduce_add_epi32(x.v); }
inline void store_entries(Entry* to, Ints x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtsepi32_epi8(x.v)); }
inline Floats floats_of(Ints x, int32_t offset) { return {_mm512_cvtepi32_ps(_mm512_sub_epi32(x.v, _mm512_set1_epi32(offset)))}; }

// What is multiplied with a row's four entries: [output, 4].
struct Weights {
  __m512i v;
  Weights() = default;
  explicit Weights(const uint8_t* p) : v(_mm512_loadu_si512(p)) {}
};

// A row's four entries, for every output.
struct Four {
  __m512i v;
  explicit Four(const Entry* p) {
    int32_t x;
    std::memcpy(&x, p, sizeof x);
    v = _mm512_set1_epi32(x);
  }
};

// sum += weights times four entries. GCC's intrinsic keeps a second copy of every sum, which costs half the speed.
inline void add_product(Ints& sum, const Weights& weights, const Four& four) {
#ifdef __AVX512VNNI__
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(weights.v), "v"(four.v));
#else
  sum.v = _mm512_dpbusd_epi32(sum.v, weights.v, four.v);
#endif
}

#else

using Entry = int16_t;
constexpr int kPlace[kSide] = {0, 2, 1, 3};
constexpr int64_t kMost = 5;
constexpr int kBlocks = 1;
constexpr int64_t kFew = 0;

struct Ints {
  __m256i low, high;
};

inline Ints nothing() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Ints rounded(Floats x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
inline Ints operator+(Ints x, Ints y) { return {_mm256_add_epi32(x.low, y.low), _mm256_add_epi32(x.high, y.high)}; }
inline int32_t sum_of(Ints x) {
  const __m256i eight = _mm256_add_epi32(x.low, x.high);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}
inline void store_entries(Entry* to, Ints x) {
  const __m256i narrow = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.low, x.high), 0xD8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(narrow, 0xD8), 0xD8));
}
inline Floats floats_of(Ints x, int32_t offset) {
  const __m256i less = _mm256_set1_epi32(offset);
  return {_mm256_cvtepi32_ps(_mm256_sub_epi32(x.low, less)), _mm256_cvtepi32_ps(_mm256_sub_epi32(x.high, less))};
}

struct Weights {
  __m256i low_even, low_odd, high_even, high_odd;
  Weights() = default;
  explicit Weights(const uint8_t* p) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), byte = _mm256_set1_epi16(0xFF);
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32));
    low_even = _mm256_and_si256(low, byte), low_odd = _mm256_srli_epi16(low, 8);
    high_even = _mm256_and_si256(high, byte), high_odd = _mm256_srli_epi16(high, 8);
  }
};

struct Four {
  __m256i even, odd;
  explicit Four(const Entry* p) {
    int32_t x, y;
    std::memcpy(&x, p, sizeof x), std::memcpy(&y, p + 2, sizeof y);
    even = _mm256_set1_epi32(x), odd = _mm256_set1_epi32(y);
  }
};

// sum += weights times entries, two a lane. Left to itself GCC copies every sum, and runs out of registers.
inline void add_pairs(__m256i& sum, __m256i weights, __m256i entries) {
  const __m256i product = _mm256_madd_epi16(weights, entries);
  asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(product));
}
inline void add_product(Ints& sum, const Weights& weights, const Four& four) {
  add_pairs(sum.low, weights.low_even, four.even);
  add_pairs(sum.high, weights.high_even, four.even);
  add_pairs(sum.low, weights.low_odd, four.odd);
  add_pairs(sum.high, weights.high_odd, four.odd);
}

#endif

// kRows rows times kWide blocks of 16 outputs. rows: [in / 4, kRows, 4], so that one address serves them all; quads: in / 4. While
// it multiplies, it fetches the `fetch` bytes from `next` on, a little with every quad: what the memory brings while the arithmetic
// lasts is free. kStreams: into the first cache alone, since weights that do not fit the last one would only empty it of what is
// needed again: keys, values, the draft.
template <int kRows, int kWide, bool kStreams>
void multiply_blocks(const uint8_t* weight, const Entry* rows, int64_t quads, const uint8_t* next, int64_t fetch,
                     Ints (&sums)[kRows][kWide]) {
  Ints sum[kRows][kWide];  // in registers: every loop over them is unrolled
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int b = 0; b < kWide; ++b) sum[r][b] = nothing();
  }
  const int64_t step = (fetch + quads * 64 - 1) / (quads * 64) * 64;  // bytes to fetch a quad, whole lines
  for (int64_t quad = 0; quad < quads; ++quad) {
    for (int64_t line = 0; line < step; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(next + quad * step + line), kStreams ? _MM_HINT_NTA : _MM_HINT_T0);
    }
    Weights w[kWide];
#pragma GCC unroll 2
    for (int b = 0; b < kWide; ++b) w[b] = Weights(weight + (b * quads + quad) * 64);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const Four four(rows + (quad * kRows + r) * kSide);
#pragma GCC unroll 2
      for (int b = 0; b < kWide; ++b) add_product(sum[r][b], w[b], four);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int b = 0; b < kWide; ++b) sums[r][b] = sum[r][b];
  }
}

}  // namespace jakiro
