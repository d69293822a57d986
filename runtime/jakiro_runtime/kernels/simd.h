// SIMD vector of 16 floats: one register of AVX-512 (with VNNI), or two of AVX2 with FMA.
//
// Why 16 lanes on both: a sum over a row is then split into the same partial sums whatever the CPU, so the kernels are written
// once and both builds give the same bits. Code that depends on how many registers there are uses kRegisters.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <initializer_list>

#ifndef JAKIRO_AVX512  // tests set it, over a shim of these instructions
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define JAKIRO_AVX512 1
#else
#define JAKIRO_AVX512 0
#endif
#endif

namespace jakiro {

constexpr int64_t kLanes = 16;

#if JAKIRO_AVX512

constexpr int kRegisters = 32;  // vectors of 16 floats

struct Floats {
  __m512 v;
};

inline Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Floats x) { _mm512_storeu_ps(p, x.v); }
inline Floats broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Floats operator+(Floats x, Floats y) { return {_mm512_add_ps(x.v, y.v)}; }
inline Floats operator-(Floats x, Floats y) { return {_mm512_sub_ps(x.v, y.v)}; }
inline Floats operator*(Floats x, Floats y) { return {_mm512_mul_ps(x.v, y.v)}; }
inline Floats operator/(Floats x, Floats y) { return {_mm512_div_ps(x.v, y.v)}; }
inline Floats fmadd(Floats x, Floats y, Floats sum) { return {_mm512_fmadd_ps(x.v, y.v, sum.v)}; }      // x y + sum
inline Floats fnmadd(Floats x, Floats y, Floats from) { return {_mm512_fnmadd_ps(x.v, y.v, from.v)}; }  // from - x y
inline Floats max(Floats x, Floats y) { return {_mm512_max_ps(x.v, y.v)}; }
inline Floats min(Floats x, Floats y) { return {_mm512_min_ps(x.v, y.v)}; }
inline Floats abs(Floats x) { return {_mm512_abs_ps(x.v)}; }
inline Floats round(Floats x) { return {_mm512_roundscale_ps(x.v, 8)}; }
inline float reduce_add(Floats x) { return _mm512_reduce_add_ps(x.v); }
inline float reduce_max(Floats x) { return _mm512_reduce_max_ps(x.v); }

// Bit n of the mask is lane n.
inline uint32_t greater(Floats x, Floats y) { return _mm512_cmp_ps_mask(x.v, y.v, _CMP_GT_OQ); }
inline uint32_t equal(Floats x, Floats y) { return _mm512_cmpeq_ps_mask(x.v, y.v); }

// Masked access to the first `count` lanes: the other lanes are not read (they become `otherwise`) and not written.
inline __mmask16 first_lanes(int64_t count) { return count >= kLanes ? 0xFFFF : (1u << count) - 1; }
inline Floats load_first(const float* p, int64_t count, Floats otherwise) {
  return {_mm512_mask_loadu_ps(otherwise.v, first_lanes(count), p)};
}
inline void store_first(float* p, int64_t count, Floats x) { _mm512_mask_storeu_ps(p, first_lanes(count), x.v); }
inline Floats mask_first(Floats x, int64_t count) { return {_mm512_maskz_mov_ps(first_lanes(count), x.v)}; }

inline Floats load_half(const void* p) {  // 16 values in half precision
  return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)))};
}

// x * 2^n, n an integer
inline Floats scale_exponent(Floats x, Floats n) { return {_mm512_scalef_ps(x.v, n.v)}; }

// Pins a value in a register. GCC would fold the load into every multiply-add that uses it, and load ports are the bottleneck.
inline Floats pin(Floats x) {
#ifdef __AVX512F__
  asm("" : "+v"(x.v));
#endif
  return x;
}

// One stage of a fast Walsh-Hadamard transform: lanes whose numbers differ in bit kBit become their sum (lower) and difference
// (upper).
template <int kBit>
inline Floats butterfly(Floats in) {
  const __m512 x = in.v;
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
  return {_mm512_mask_sub_ps(_mm512_add_ps(x, other), kUpper, other, x)};
}

// Transposes a 16 x 16 tile: rows `from`, columns kStride floats apart in `to`.
template <int64_t kStride>
inline void transpose_16(const float* const (&from)[16], float* to) {
  __m512 a[16], b[16];
#pragma GCC unroll 8
  for (int n = 0; n < 16; n += 2) {
    const __m512 even = _mm512_loadu_ps(from[n]), odd = _mm512_loadu_ps(from[n + 1]);
    a[n] = _mm512_unpacklo_ps(even, odd);
    a[n + 1] = _mm512_unpackhi_ps(even, odd);
  }
#pragma GCC unroll 8
  for (int n = 0; n < 16; n += 4) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512d low = _mm512_castps_pd(a[n + half]), high = _mm512_castps_pd(a[n + half + 2]);
      b[n + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      b[n + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < 4; ++n) {  // b[4 q + n] holds columns n, n + 4, n + 8, n + 12 of rows 4 q to 4 q + 3
    const __m512 even_low = _mm512_shuffle_f32x4(b[n], b[n + 4], 0x88),
                 even_high = _mm512_shuffle_f32x4(b[n + 8], b[n + 12], 0x88);
    const __m512 odd_low = _mm512_shuffle_f32x4(b[n], b[n + 4], 0xDD), odd_high = _mm512_shuffle_f32x4(b[n + 8], b[n + 12], 0xDD);
    _mm512_storeu_ps(to + n * kStride, _mm512_shuffle_f32x4(even_low, even_high, 0x88));
    _mm512_storeu_ps(to + (n + 4) * kStride, _mm512_shuffle_f32x4(odd_low, odd_high, 0x88));
    _mm512_storeu_ps(to + (n + 8) * kStride, _mm512_shuffle_f32x4(even_low, even_high, 0xDD));
    _mm512_storeu_ps(to + (n + 12) * kStride, _mm512_shuffle_f32x4(odd_low, odd_high, 0xDD));
  }
}

#else

constexpr int kRegisters = 8;

struct Floats {
  __m256 low, high;
};

inline Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Floats x) {
  _mm256_storeu_ps(p, x.low);
  _mm256_storeu_ps(p + 8, x.high);
}
inline Floats broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats operator+(Floats x, Floats y) { return {_mm256_add_ps(x.low, y.low), _mm256_add_ps(x.high, y.high)}; }
inline Floats operator-(Floats x, Floats y) { return {_mm256_sub_ps(x.low, y.low), _mm256_sub_ps(x.high, y.high)}; }
inline Floats operator*(Floats x, Floats y) { return {_mm256_mul_ps(x.low, y.low), _mm256_mul_ps(x.high, y.high)}; }
inline Floats operator/(Floats x, Floats y) { return {_mm256_div_ps(x.low, y.low), _mm256_div_ps(x.high, y.high)}; }
inline Floats fmadd(Floats x, Floats y, Floats sum) {  // x y + sum
  return {_mm256_fmadd_ps(x.low, y.low, sum.low), _mm256_fmadd_ps(x.high, y.high, sum.high)};
}
inline Floats fnmadd(Floats x, Floats y, Floats from) {  // from - x y
  return {_mm256_fnmadd_ps(x.low, y.low, from.low), _mm256_fnmadd_ps(x.high, y.high, from.high)};
}
inline Floats max(Floats x, Floats y) { return {_mm256_max_ps(x.low, y.low), _mm256_max_ps(x.high, y.high)}; }
inline Floats min(Floats x, Floats y) { return {_mm256_min_ps(x.low, y.low), _mm256_min_ps(x.high, y.high)}; }
inline Floats abs(Floats x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}
inline Floats round(Floats x) { return {_mm256_round_ps(x.low, 8), _mm256_round_ps(x.high, 8)}; }
inline float reduce_add(Floats x) {
  const __m256 eight = _mm256_add_ps(x.low, x.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float reduce_max(Floats x) {
  const __m256 eight = _mm256_max_ps(x.low, x.high);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// Bit n of the mask is lane n.
inline uint32_t bits_of(__m256 low, __m256 high) { return _mm256_movemask_ps(low) | _mm256_movemask_ps(high) << 8; }
inline uint32_t greater(Floats x, Floats y) {
  return bits_of(_mm256_cmp_ps(x.low, y.low, _CMP_GT_OQ), _mm256_cmp_ps(x.high, y.high, _CMP_GT_OQ));
}
inline uint32_t equal(Floats x, Floats y) {
  return bits_of(_mm256_cmp_ps(x.low, y.low, _CMP_EQ_OQ), _mm256_cmp_ps(x.high, y.high, _CMP_EQ_OQ));
}

// Masked access to the first `count` lanes: the other lanes are not read (they become `otherwise`) and not written.
inline __m256i first_lanes(int64_t count) {
  const int lanes = count < 0 ? 0 : count > 8 ? 8 : static_cast<int>(count);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Floats load_first(const float* p, int64_t count, Floats otherwise) {
  if (count >= kLanes) return load(p);
  const __m256i low = first_lanes(count), high = first_lanes(count - 8);
  return {_mm256_blendv_ps(otherwise.low, _mm256_maskload_ps(p, low), _mm256_castsi256_ps(low)),
          _mm256_blendv_ps(otherwise.high, _mm256_maskload_ps(p + 8, high), _mm256_castsi256_ps(high))};
}
inline void store_first(float* p, int64_t count, Floats x) {
  if (count >= kLanes) return store(p, x);
  _mm256_maskstore_ps(p, first_lanes(count), x.low);
  _mm256_maskstore_ps(p + 8, first_lanes(count - 8), x.high);
}
inline Floats mask_first(Floats x, int64_t count) {
  if (count >= kLanes) return x;
  return {_mm256_and_ps(x.low, _mm256_castsi256_ps(first_lanes(count))),
          _mm256_and_ps(x.high, _mm256_castsi256_ps(first_lanes(count - 8)))};
}

inline Floats load_half(const void* p) {  // 16 values in half precision
  const __m128i* from = static_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from + 1))};
}

// x * 2^n, n an integer from -252 to 254: in two steps, each a power that a float represents
inline __m256 power_of_two(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
inline __m256 scale_exponent(__m256 x, __m256 n) {
  const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
  return _mm256_mul_ps(_mm256_mul_ps(x, power_of_two(half)), power_of_two(_mm256_sub_epi32(whole, half)));
}
inline Floats scale_exponent(Floats x, Floats n) { return {scale_exponent(x.low, n.low), scale_exponent(x.high, n.high)}; }

// Pins a value in a register. GCC would fold the load into every multiply-add that uses it, and load ports are the bottleneck.
inline Floats pin(Floats x) {
  asm("" : "+x"(x.low), "+x"(x.high));
  return x;
}

// One stage of a fast Walsh-Hadamard transform: lanes whose numbers differ in bit kBit become their sum (lower) and difference
// (upper).
template <int kBit>
inline __m256 butterfly(__m256 x) {
  static_assert(kBit < 8, "lanes of one half");
  constexpr int kUpper = kBit == 1 ? 0xAA : kBit == 2 ? 0xCC : 0xF0;
  __m256 other;
  if constexpr (kBit == 1) {
    other = _mm256_permute_ps(x, 0xB1);
  } else if constexpr (kBit == 2) {
    other = _mm256_permute_ps(x, 0x4E);
  } else {
    other = _mm256_permute2f128_ps(x, x, 1);
  }
  return _mm256_blend_ps(_mm256_add_ps(x, other), _mm256_sub_ps(other, x), kUpper);
}
template <int kBit>
inline Floats butterfly(Floats x) {
  if constexpr (kBit == 8) {
    return {_mm256_add_ps(x.low, x.high), _mm256_sub_ps(x.low, x.high)};
  } else {
    return {butterfly<kBit>(x.low), butterfly<kBit>(x.high)};
  }
}

// Transposes an 8 x 8 tile, from column `at` on.
template <int64_t kStride>
inline void transpose_8(const float* const* from, int64_t at, float* to) {
  __m256 a[8], b[8];
#pragma GCC unroll 4
  for (int n = 0; n < 8; n += 2) {
    const __m256 even = _mm256_loadu_ps(from[n] + at), odd = _mm256_loadu_ps(from[n + 1] + at);
    a[n] = _mm256_unpacklo_ps(even, odd);
    a[n + 1] = _mm256_unpackhi_ps(even, odd);
  }
#pragma GCC unroll 2
  for (int n = 0; n < 8; n += 4) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      b[n + 2 * half] = _mm256_shuffle_ps(a[n + half], a[n + half + 2], 0x44);
      b[n + 2 * half + 1] = _mm256_shuffle_ps(a[n + half], a[n + half + 2], 0xEE);
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < 4; ++n) {  // b[4 q + n] holds columns n and n + 4 of rows 4 q to 4 q + 3
    _mm256_storeu_ps(to + n * kStride, _mm256_permute2f128_ps(b[n], b[n + 4], 0x20));
    _mm256_storeu_ps(to + (n + 4) * kStride, _mm256_permute2f128_ps(b[n], b[n + 4], 0x31));
  }
}

// Transposes a 16 x 16 tile: rows `from`, columns kStride floats apart in `to`.
template <int64_t kStride>
inline void transpose_16(const float* const (&from)[16], float* to) {
  for (int column = 0; column < 16; column += 8) {
    for (int row = 0; row < 16; row += 8) transpose_8<kStride>(from + row, column, to + column * kStride + row);
  }
}

#endif

// e^x within 2 ulp, by Cephes' polynomial; 0 and infinity outside float's range
inline Floats exp(Floats x) {
  x = min(max(x, broadcast(-120.0f)), broadcast(120.0f));
  const Floats n = round(x * broadcast(1.44269504088896341f));
  Floats r = fnmadd(n, broadcast(0.693359375f), x);
  r = fnmadd(n, broadcast(-2.12194440e-4f), r);
  Floats p = broadcast(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f, 1.0f, 1.0f}) {
    p = fmadd(p, r, broadcast(c));
  }
  return scale_exponent(p, n);
}

}  // namespace jakiro
