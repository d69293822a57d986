// One warp multiplies a 16-row weight tile by 8 activation rows: d[16][8] += a[16][k] * b[8][k], d in float.
//
// `multiply_fragment` takes 16 bytes per lane and row, straight from memory: lane 4 * group + part holds
// bytes 16 * part .. 16 * part + 15 of a 64-byte run of weight rows `group` and `group + 8` and of activation
// row `group`. That is not the order in which the manual numbers an mma's k, but a dot product does not care
// in which order k runs, as long as both operands agree. So one 16-byte load a lane is a fragment, for every
// type: no ldmatrix, no shared memory, no shuffles.
//
//   half, bfloat16: 32 values of k, two m16n8k16 (Turing: half as four m16n8k8)
//   float:          16 values of k, two m16n8k8 in tf32, three times: a = big + small, b likewise, and the
//                   product of the two small parts is dropped. The error is of float's own order (2^-21 of a
//                   product against 2^-24).
//
// Turing has no tensor core for bfloat16 and float: there the product is formed from shuffles, slowly and
// exactly.
//
// Right on an H200 (`python3 tests/gpu/run.py 1`); these figures are estimates, and none of them was measured on a GPU.
#pragma once

#include "numeric.cuh"

#ifdef JAKIRO_SHIM
#include "mma.h"
#ifndef JAKIRO_ARCH
#define JAKIRO_ARCH 800
#endif
#elif defined(__CUDA_ARCH__)
#define JAKIRO_ARCH __CUDA_ARCH__
#else
#define JAKIRO_ARCH 800
#endif

namespace jakiro {

#ifndef JAKIRO_SHIM

#define JAKIRO_MMA(name, shape_and_types)                                                                      \
  __device__ __forceinline__ void name(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {        \
    asm("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                       \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                   \
  }

#if JAKIRO_ARCH >= 800
JAKIRO_MMA(mma_f16, "m16n8k16.row.col.f32.f16.f16.f32")
JAKIRO_MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
JAKIRO_MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")

__device__ __forceinline__ unsigned to_tf32(float value) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}
#else
__device__ __forceinline__ void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
}
#endif
#undef JAKIRO_MMA

#endif  // JAKIRO_SHIM

__device__ __forceinline__ float dot_word(float, unsigned a, unsigned b) { return __uint_as_float(a) * __uint_as_float(b); }
__device__ __forceinline__ float dot_word(bfloat16, unsigned a, unsigned b) {  // two bfloat16 a word
  return __uint_as_float(a << 16) * __uint_as_float(b << 16) +
         __uint_as_float(a & 0xffff0000u) * __uint_as_float(b & 0xffff0000u);
}

/// The same product without a tensor core: every lane fetches the operands of its four results from their
/// owners.
template <class T>
__device__ void mma_by_shuffles(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  const int lane = threadIdx.x % 32, group = lane / 4, part = lane % 4;
#pragma unroll 1
  for (int owner = 0; owner < 4; ++owner) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const unsigned low = __shfl_sync(~0u, a[2 * half], group * 4 + owner);
      const unsigned high = __shfl_sync(~0u, a[2 * half + 1], group * 4 + owner);
      const unsigned even = __shfl_sync(~0u, b[half], part * 8 + owner);
      const unsigned odd = __shfl_sync(~0u, b[half], part * 8 + 4 + owner);
      d[0] += dot_word(T{}, low, even);
      d[1] += dot_word(T{}, low, odd);
      d[2] += dot_word(T{}, high, even);
      d[3] += dot_word(T{}, high, odd);
    }
  }
}

__device__ __forceinline__ void mma(half, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { mma_f16(d, a, b); }

__device__ __forceinline__ void mma(bfloat16, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if JAKIRO_ARCH >= 800
  mma_bf16(d, a, b);
#else
  mma_by_shuffles<bfloat16>(d, a, b);
#endif
}

__device__ __forceinline__ void mma(float, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if JAKIRO_ARCH >= 800
  unsigned a_big[4], a_small[4], b_big[2], b_small[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a_big[i] = to_tf32(__uint_as_float(a[i]));
    a_small[i] = to_tf32(__uint_as_float(a[i]) - __uint_as_float(a_big[i]));
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    b_big[i] = to_tf32(__uint_as_float(b[i]));
    b_small[i] = to_tf32(__uint_as_float(b[i]) - __uint_as_float(b_big[i]));
  }
  mma_tf32(d, a_small, b_big);
  mma_tf32(d, a_big, b_small);
  mma_tf32(d, a_big, b_big);
#else
  mma_by_shuffles<float>(d, a, b);
#endif
}

/// d[16 weight rows][8 activation rows] += 64 bytes of k; see the top of this file for who holds what.
template <class T>
__device__ __forceinline__ void multiply_fragment(float (&d)[4], uint4 low, uint4 high, uint4 activations) {
  const unsigned first[4] = {low.x, high.x, low.y, high.y}, first_b[2] = {activations.x, activations.y};
  const unsigned second[4] = {low.z, high.z, low.w, high.w}, second_b[2] = {activations.z, activations.w};
  mma(T{}, d, first, first_b);
  mma(T{}, d, second, second_b);
}

}  // namespace jakiro
