// SIMD vector of 16 int32, and its conversions from and to Floats and bytes.
#pragma once

#include "simd.h"

namespace jakiro {

#if JAKIRO_AVX512

struct Ints {
  __m512i v;
};

inline Ints zero() { return {_mm512_setzero_si512()}; }
inline Ints round_to_int(Floats x) { return {_mm512_cvtps_epi32(x.v)}; }
inline Ints operator+(Ints x, Ints y) { return {_mm512_add_epi32(x.v, y.v)}; }
inline __m256i halves_added(Ints x) { return _mm256_add_epi32(_mm512_castsi512_si256(x.v), _mm512_extracti64x4_epi64(x.v, 1)); }
inline Floats to_float(Ints x, int32_t offset) { return {_mm512_cvtepi32_ps(_mm512_sub_epi32(x.v, _mm512_set1_epi32(offset)))}; }
inline void store_bytes(int8_t* to, Ints x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtsepi32_epi8(x.v)); }

// sum += dot products of 4 unsigned and 4 signed bytes in each lane (vpdpbusd). Inline assembly, because GCC's intrinsic copies
// every accumulator, which halves the speed.
inline void dot_bytes(Ints& sum, __m512i x, __m512i y) {
#ifdef __AVX512VNNI__
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(x), "v"(y));
#else
  sum.v = _mm512_dpbusd_epi32(sum.v, x, y);
#endif
}

#else

struct Ints {
  __m256i low, high;
};

inline Ints zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Ints round_to_int(Floats x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
inline Ints operator+(Ints x, Ints y) { return {_mm256_add_epi32(x.low, y.low), _mm256_add_epi32(x.high, y.high)}; }
inline __m256i halves_added(Ints x) { return _mm256_add_epi32(x.low, x.high); }
inline Floats to_float(Ints x, int32_t offset) {
  const __m256i bias = _mm256_set1_epi32(offset);
  return {_mm256_cvtepi32_ps(_mm256_sub_epi32(x.low, bias)), _mm256_cvtepi32_ps(_mm256_sub_epi32(x.high, bias))};
}
inline void store_bytes(int8_t* to, Ints x) {
  const __m256i narrow = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.low, x.high), 0xD8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm_packs_epi16(_mm256_castsi256_si128(narrow), _mm256_extracti128_si256(narrow, 1)));
}

#endif

// The sum of all lanes, modulo 2^32: a row of NaN overflows it, which GCC's own reduction of 512 bits leaves undefined.
inline uint32_t reduce_add(Ints x) {
  const __m256i eight = halves_added(x);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1))));
}

}  // namespace jakiro
