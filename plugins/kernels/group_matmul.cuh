// y[rows, out] = x[rows, in] * w[in, out], w in int4 with a scale for each `group` inputs of an output (W4A16).
//
// The weights lie as ONNX has them, [in, out] with two outputs a byte, so that the plugin reads what
// DequantizeLinear would. A weight is step * scale rounded to the activations' type, which is that operator's own
// result; sums are in float.
//
// One block makes 64 outputs for up to 8 * kTiles rows. Eight lanes of a warp take 8 outputs each (one 32-bit word of
// an input's row: together one 32-byte sector), its four parts 8 inputs each. Outputs are the 16-row operand of the
// mma: of the eight that a lane holds, product q takes numbers 2q and 2q + 1 for the tile's rows `group` and
// `group + 8`; inputs may be numbered in any order as long as both operands agree (mma.cuh). No weight goes through
// shared memory and none is needed twice. The warps split the inputs, 32 a step, which lie in one group; their sums are
// added in a fixed order at the end.
//
// Bytes, for a layer of Llama-3.1-8B (4096 x 14336, groups of 128): 29.4 MB of weights and 0.9 MB of scales against
// 117 MB in half precision; x and y are 0.4 MB for 10 rows. Roofline: Orin AGX (205 GB/s) 0.15 ms, Thor (273 GB/s)
// 0.11 ms. Unpacking is some five instructions a weight: at 205 GB/s 80 % of Orin's issue slots, so memory and
// instructions are about balanced there, and an H100 would be bound by them.
//
// On an H100, 27 November 2026 (python3 tests/gpu/run.py 1): within the bound for 1 to 128 rows; the layer above takes
// 25.8 us for one row, 43.4 for 32 and 113.0 for 61. Not run on a Jetson.
#pragma once

#include <stdint.h>

#include "memory.cuh"
#include "mma.cuh"

namespace jakiro {

constexpr int kGroupWarps = 8;
constexpr int kGroupThreads = 32 * kGroupWarps;
constexpr int kGroupOutputs = 64;  // of a block
constexpr int kGroupStep = 32;     // inputs of a warp's step
constexpr int kGroupStride = 33;   // words between registers of a partial sum: lanes, and one that spreads the banks
constexpr int kGroupSums = 4 * 4 * kGroupStride;
constexpr int kGroupShared = 2 * kGroupWarps * kGroupSums * static_cast<int>(sizeof(float));

template <class T>
struct GroupMatmul {
  const T* x;               // [rows, in]
  const uint32_t* weights;  // [in, out / 8] words of eight outputs, the first in the lowest bits
  const T* scales;          // [in / group, out]
  T* y;                     // [rows, out]
  int rows, in, out, group;
};

/// Two weights of one output, of inputs next to each other: a register of an mma's operand.
template <class T>
__device__ __forceinline__ unsigned weight_pair(unsigned first, unsigned second, int place, float scale) {
  const int shift = 28 - 4 * place;
  const T values[2] = {from_float<T>(static_cast<float>(static_cast<int>(first << shift) >> 28) * scale),
                       from_float<T>(static_cast<float>(static_cast<int>(second << shift) >> 28) * scale)};
  unsigned bits;
  memcpy(&bits, values, sizeof bits);
  return bits;
}

template <class T, int kTiles>
__global__ void __launch_bounds__(kGroupThreads) group_matmul(GroupMatmul<T> p) {
  const int lane = threadIdx.x % 32, group = lane / 4, part = lane % 4, warp = threadIdx.x / 32;
  const int first = blockIdx.x * kGroupOutputs, own = first + 8 * group, stride = p.out / 8;
  const bool inside = own < p.out;
  const int tiles = (p.rows + 7) / 8;
  const uint32_t* column = p.weights + own / 8;

  float sums[4][kTiles][4] = {};
  uint32_t ahead[8];
  const auto fetch = [&](int k) {
#pragma unroll
    for (int i = 0; i < 8; ++i) ahead[i] = inside && k < p.in ? load(column + static_cast<size_t>(k + 8 * part + i) * stride) : 0;
  };
  fetch(warp * kGroupStep);
  for (int k = warp * kGroupStep; k < p.in; k += kGroupWarps * kGroupStep) {
    uint32_t words[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) words[i] = ahead[i];
    fetch(k + kGroupWarps * kGroupStep);
    uint4 packed = make_uint4(0, 0, 0, 0);
    if (inside) packed = load(reinterpret_cast<const uint4*>(p.scales + static_cast<size_t>(k / p.group) * p.out + own));
    T scales[8];
    memcpy(scales, &packed, sizeof scales);
    unsigned operands[4][2][4];  // the step's weights, unpacked once for all rows
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const float even = to_float(scales[2 * q]), odd = to_float(scales[2 * q + 1]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t* four = words + 4 * half;
        operands[q][half][0] = weight_pair<T>(four[0], four[1], 2 * q, even);
        operands[q][half][1] = weight_pair<T>(four[0], four[1], 2 * q + 1, odd);
        operands[q][half][2] = weight_pair<T>(four[2], four[3], 2 * q, even);
        operands[q][half][3] = weight_pair<T>(four[2], four[3], 2 * q + 1, odd);
      }
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      if (j >= tiles) continue;  // the same for the whole block
      const int row = 8 * j + group;
      uint4 input = make_uint4(0, 0, 0, 0);
      if (row < p.rows) input = load(reinterpret_cast<const uint4*>(p.x + static_cast<size_t>(row) * p.in + k + 8 * part));
      const unsigned low[2] = {input.x, input.y}, high[2] = {input.z, input.w};
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        mma(T{}, sums[q][j], operands[q][0], low);
        mma(T{}, sums[q][j], operands[q][1], high);
      }
    }
  }

  // The warps' sums, one column tile after the other; the two buffers take turns, so one barrier a tile is enough
  float* shared = reinterpret_cast<float*>(shared_memory());
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    if (j >= tiles) continue;
    float* buffer = shared + (j % 2) * kGroupWarps * kGroupSums;
#pragma unroll
    for (int q = 0; q < 4; ++q)
#pragma unroll
      for (int i = 0; i < 4; ++i) store_shared(buffer + warp * kGroupSums + (4 * q + i) * kGroupStride + lane, sums[q][j][i]);
    __syncthreads();
    for (int element = threadIdx.x; element < 8 * kGroupOutputs; element += kGroupThreads) {
      const int slot = element / kGroupOutputs, n = element % kGroupOutputs, row = 8 * j + slot;
      if (row >= p.rows || first + n >= p.out) continue;
      const int q = n % 8 / 2, i = 2 * (n % 2) + slot % 2, from = 4 * (n / 8) + slot / 2;
      float total = 0;
      for (int other = 0; other < kGroupWarps; ++other)
        total += load_shared(buffer + other * kGroupSums + (4 * q + i) * kGroupStride + from);
      store(p.y + static_cast<size_t>(row) * p.out + first + n, from_float<T>(total));
    }
  }
}

}  // namespace jakiro
