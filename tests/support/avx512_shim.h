// AVX-512 VNNI in plain C++: the kernels' wide form is compiled over it and tested where no processor has these instructions.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace shim {

struct F {
  float at[16];
};
struct I {
  int32_t at[16];
};
using Mask = uint16_t;

template <typename T, typename Work>
inline T each(Work work) {
  T result;
  for (int n = 0; n < 16; ++n) result.at[n] = work(n);
  return result;
}
template <typename T>
inline T read(const void* p) {
  T x;
  std::memcpy(x.at, p, 64);
  return x;
}
template <typename T>
inline auto total(T x, int first = 0, int count = 16) -> decltype(x.at[0] + x.at[0]) {
  return count == 1 ? x.at[first] : total(x, first, count / 2) + total(x, first + count / 2, count / 2);
}

inline F min_ps(F x, F y) {
  return each<F>([&](int n) { return std::min(x.at[n], y.at[n]); });
}
inline F max_ps(F x, F y) {
  return each<F>([&](int n) { return std::max(x.at[n], y.at[n]); });
}
inline F add_ps(F x, F y) {
  return each<F>([&](int n) { return x.at[n] + y.at[n]; });
}
inline F sub_ps(F x, F y) {
  return each<F>([&](int n) { return x.at[n] - y.at[n]; });
}
inline F mul_ps(F x, F y) {
  return each<F>([&](int n) { return x.at[n] * y.at[n]; });
}
inline F div_ps(F x, F y) {
  return each<F>([&](int n) { return x.at[n] / y.at[n]; });
}
inline F fmadd_ps(F x, F y, F z) {
  return each<F>([&](int n) { return std::fma(x.at[n], y.at[n], z.at[n]); });
}
inline F fnmadd_ps(F x, F y, F z) {
  return each<F>([&](int n) { return std::fma(-x.at[n], y.at[n], z.at[n]); });
}
inline F abs_ps(F x) {
  return each<F>([&](int n) { return std::fabs(x.at[n]); });
}
inline F set1_ps(float x) {
  return each<F>([&](int) { return x; });
}
inline F roundscale_ps(F x, int) {
  return each<F>([&](int n) { return std::nearbyint(x.at[n]); });
}
inline F scalef_ps(F x, F y) {
  return each<F>([&](int n) { return std::ldexp(x.at[n], static_cast<int>(y.at[n])); });
}
inline F loadu_ps(const void* p) { return read<F>(p); }
inline void storeu_ps(void* p, F x) { std::memcpy(p, x.at, 64); }
inline F mask_loadu_ps(F otherwise, Mask mask, const float* p) {
  return each<F>([&](int n) { return mask >> n & 1 ? p[n] : otherwise.at[n]; });
}
inline void mask_storeu_ps(float* p, Mask mask, F x) {
  for (int n = 0; n < 16; ++n) {
    if (mask >> n & 1) p[n] = x.at[n];
  }
}
inline F maskz_mov_ps(Mask mask, F x) {
  return each<F>([&](int n) { return mask >> n & 1 ? x.at[n] : 0.0f; });
}
inline F mask_sub_ps(F otherwise, Mask mask, F x, F y) {
  return each<F>([&](int n) { return mask >> n & 1 ? x.at[n] - y.at[n] : otherwise.at[n]; });
}
inline float reduce_add_ps(F x) { return total(x); }
inline float reduce_max_ps(F x) { return *std::max_element(x.at, x.at + 16); }
inline Mask cmp_ps_mask(F x, F y, int) {
  Mask mask = 0;
  for (int n = 0; n < 16; ++n) mask |= (x.at[n] > y.at[n]) << n;
  return mask;
}
inline Mask cmpeq_ps_mask(F x, F y) {
  Mask mask = 0;
  for (int n = 0; n < 16; ++n) mask |= (x.at[n] == y.at[n]) << n;
  return mask;
}

// four lanes of 128 bits
inline F permute_ps(F x, int order) {
  return each<F>([&](int n) { return x.at[n / 4 * 4 + (order >> 2 * (n % 4) & 3)]; });
}
inline F shuffle_f32x4(F x, F y, int order) {
  return each<F>([&](int n) { return (n < 8 ? x : y).at[(order >> 2 * (n / 4) & 3) * 4 + n % 4]; });
}
inline F unpacklo_ps(F x, F y) {
  return each<F>([&](int n) { return (n % 2 ? y : x).at[n / 4 * 4 + n % 4 / 2]; });
}
inline F unpackhi_ps(F x, F y) {
  return each<F>([&](int n) { return (n % 2 ? y : x).at[n / 4 * 4 + n % 4 / 2 + 2]; });
}
inline F unpacklo_pd(F x, F y) {
  return each<F>([&](int n) { return (n % 4 / 2 ? y : x).at[n / 4 * 4 + n % 2]; });
}
inline F unpackhi_pd(F x, F y) {
  return each<F>([&](int n) { return (n % 4 / 2 ? y : x).at[n / 4 * 4 + n % 2 + 2]; });
}
inline F same(F x) { return x; }

inline I setzero_si512() { return I{}; }
inline I set1_epi32(int32_t x) {
  return each<I>([&](int) { return x; });
}
inline I loadu_si512(const void* p) { return read<I>(p); }
inline I set1_epi8(int8_t x) { return set1_epi32(0x01010101 * static_cast<uint8_t>(x)); }
inline I and_si512(I x, I y) {
  return each<I>([&](int n) { return x.at[n] & y.at[n]; });
}
inline I srli_epi16(I x, int count) {
  return each<I>([&](int n) { return static_cast<uint32_t>(x.at[n]) >> count & 0x00010001u * (0xFFFFu >> count); });
}
inline F cvtph_ps(__m256i x) {
  F result;
  _mm256_storeu_ps(result.at, _mm256_cvtph_ps(_mm256_castsi256_si128(x)));
  _mm256_storeu_ps(result.at + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)));
  return result;
}
inline I add_epi32(I x, I y) {
  return each<I>([&](int n) { return x.at[n] + y.at[n]; });
}
inline I sub_epi32(I x, I y) {
  return each<I>([&](int n) { return x.at[n] - y.at[n]; });
}
inline __m256i castsi512_si256(I x) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x.at)); }
inline __m256i extracti64x4_epi64(I x, int half) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x.at + 8 * half)); }
inline I cvtps_epi32(F x) {
  return each<I>([&](int n) { return static_cast<int32_t>(std::nearbyint(x.at[n])); });
}
inline F cvtepi32_ps(I x) {
  return each<F>([&](int n) { return static_cast<float>(x.at[n]); });
}
inline __m128i cvtsepi32_epi8(I x) {
  int8_t bytes[16];
  for (int n = 0; n < 16; ++n) bytes[n] = static_cast<int8_t>(std::clamp(x.at[n], -128, 127));
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
}
// unsigned bytes of x times signed bytes of y, four a lane
inline I dpbusd_epi32(I sum, I x, I y) {
  return each<I>([&](int n) {
    int32_t more = 0;
    for (int k = 0; k < 32; k += 8) more += static_cast<uint8_t>(x.at[n] >> k) * static_cast<int8_t>(y.at[n] >> k);
    return sum.at[n] + more;
  });
}

}  // namespace shim

#define JAKIRO_AVX512 1
#define __m512 shim::F
#define __m512d shim::F
#define __m512i shim::I
#define __mmask16 shim::Mask
#undef _mm512_abs_ps
#define _mm512_abs_ps shim::abs_ps
#undef _mm512_add_epi32
#define _mm512_add_epi32 shim::add_epi32
#undef _mm512_add_ps
#define _mm512_add_ps shim::add_ps
#undef _mm512_and_si512
#define _mm512_and_si512 shim::and_si512
#undef _mm512_castpd_ps
#define _mm512_castpd_ps shim::same
#undef _mm512_castps_pd
#define _mm512_castps_pd shim::same
#undef _mm512_castsi512_si256
#define _mm512_castsi512_si256 shim::castsi512_si256
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask shim::cmp_ps_mask
#undef _mm512_cmpeq_ps_mask
#define _mm512_cmpeq_ps_mask shim::cmpeq_ps_mask
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps shim::cvtepi32_ps
#undef _mm512_cvtph_ps
#define _mm512_cvtph_ps shim::cvtph_ps
#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32 shim::cvtps_epi32
#undef _mm512_cvtsepi32_epi8
#define _mm512_cvtsepi32_epi8 shim::cvtsepi32_epi8
#undef _mm512_div_ps
#define _mm512_div_ps shim::div_ps
#undef _mm512_dpbusd_epi32
#define _mm512_dpbusd_epi32 shim::dpbusd_epi32
#undef _mm512_extracti64x4_epi64
#define _mm512_extracti64x4_epi64 shim::extracti64x4_epi64
#undef _mm512_fmadd_ps
#define _mm512_fmadd_ps shim::fmadd_ps
#undef _mm512_fnmadd_ps
#define _mm512_fnmadd_ps shim::fnmadd_ps
#undef _mm512_loadu_ps
#define _mm512_loadu_ps shim::loadu_ps
#undef _mm512_loadu_si512
#define _mm512_loadu_si512 shim::loadu_si512
#undef _mm512_mask_loadu_ps
#define _mm512_mask_loadu_ps shim::mask_loadu_ps
#undef _mm512_mask_storeu_ps
#define _mm512_mask_storeu_ps shim::mask_storeu_ps
#undef _mm512_mask_sub_ps
#define _mm512_mask_sub_ps shim::mask_sub_ps
#undef _mm512_maskz_mov_ps
#define _mm512_maskz_mov_ps shim::maskz_mov_ps
#undef _mm512_max_ps
#define _mm512_max_ps shim::max_ps
#undef _mm512_min_ps
#define _mm512_min_ps shim::min_ps
#undef _mm512_mul_ps
#define _mm512_mul_ps shim::mul_ps
#undef _mm512_permute_ps
#define _mm512_permute_ps shim::permute_ps
#undef _mm512_reduce_add_ps
#define _mm512_reduce_add_ps shim::reduce_add_ps
#undef _mm512_reduce_max_ps
#define _mm512_reduce_max_ps shim::reduce_max_ps
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps shim::roundscale_ps
#undef _mm512_scalef_ps
#define _mm512_scalef_ps shim::scalef_ps
#undef _mm512_set1_epi32
#define _mm512_set1_epi32 shim::set1_epi32
#undef _mm512_set1_epi8
#define _mm512_set1_epi8 shim::set1_epi8
#undef _mm512_set1_ps
#define _mm512_set1_ps shim::set1_ps
#undef _mm512_setzero_si512
#define _mm512_setzero_si512 shim::setzero_si512
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4 shim::shuffle_f32x4
#undef _mm512_srli_epi16
#define _mm512_srli_epi16 shim::srli_epi16
#undef _mm512_storeu_ps
#define _mm512_storeu_ps shim::storeu_ps
#undef _mm512_sub_epi32
#define _mm512_sub_epi32 shim::sub_epi32
#undef _mm512_sub_ps
#define _mm512_sub_ps shim::sub_ps
#undef _mm512_unpackhi_pd
#define _mm512_unpackhi_pd shim::unpackhi_pd
#undef _mm512_unpackhi_ps
#define _mm512_unpackhi_ps shim::unpackhi_ps
#undef _mm512_unpacklo_pd
#define _mm512_unpacklo_pd shim::unpacklo_pd
#undef _mm512_unpacklo_ps
#define _mm512_unpacklo_ps shim::unpacklo_ps
