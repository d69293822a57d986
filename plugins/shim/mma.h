// Tensor-core instructions on the CPU, operand by operand as the PTX manual lays them out over a warp's lanes
// ("Matrix fragments for mma.m16n8k8 / m16n8k16"). Lane = 4 * group + part.
#pragma once

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace shim {

struct MmaOperands {
  float d[4];
  unsigned a[4], b[2];
};
static_assert(sizeof(MmaOperands) <= kSlot, "an exchange carries one lane's operands");

/// `kPerWord` elements share a 32-bit register; `decode(word, i)` gives element i as a float.
template <int kPerWord, float (*decode)(unsigned, int)>
void mma_warp(unsigned char* slots) {
  const auto lane = [slots](int index) { return reinterpret_cast<MmaOperands*>(slots + index * kSlot); };
  constexpr int kDepth = 8 * kPerWord;
  float a[16][kDepth], b[8][kDepth];
  for (int index = 0; index < 32; ++index) {
    const int group = index / 4, part = index % 4;
    for (int half = 0; half < 2; ++half)
      for (int i = 0; i < kPerWord; ++i) {
        const int k = half * 4 * kPerWord + part * kPerWord + i;
        a[group][k] = decode(lane(index)->a[2 * half], i);
        a[group + 8][k] = decode(lane(index)->a[2 * half + 1], i);
        b[group][k] = decode(lane(index)->b[half], i);
      }
  }
  for (int index = 0; index < 32; ++index) {
    const int group = index / 4, part = index % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = group + 8 * (i / 2), column = 2 * part + i % 2;
      float sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[column][k];
      lane(index)->d[i] += sum;
    }
  }
}

inline float decode_half(unsigned word, int i) { return __half2float({static_cast<std::uint16_t>(word >> 16 * i)}); }
inline float decode_bfloat(unsigned word, int i) { return __bfloat162float({static_cast<std::uint16_t>(word >> 16 * i)}); }
/// The tensor core reads 19 bits of a tf32 operand; the rest must not matter, so they are cut here.
inline float decode_tf32(unsigned word, int) { return __uint_as_float(word & 0xffffe000u); }

template <int kPerWord, float (*decode)(unsigned, int)>
void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  MmaOperands operands;
  std::memcpy(operands.d, d, sizeof d);
  std::memcpy(operands.a, a, sizeof a);
  std::memcpy(operands.b, b, sizeof b);
  const unsigned char* slots = exchange(&operands, sizeof operands, mma_warp<kPerWord, decode>);
  std::memcpy(d, slots + thread().lane() * kSlot, sizeof d);
}

}  // namespace shim

namespace jakiro {

inline void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { shim::mma<2, shim::decode_half>(d, a, b); }
inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  shim::mma<2, shim::decode_bfloat>(d, a, b);
}
inline void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { shim::mma<1, shim::decode_tf32>(d, a, b); }
/// Nearest tf32 (10 bits of fraction), halves away from zero, as cvt.rna does.
inline unsigned to_tf32(float value) { return (__float_as_uint(value) + 0x1000u) & 0xffffe000u; }

}  // namespace jakiro
