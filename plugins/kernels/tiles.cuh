// The inner loop that gate_up, down_pair and down_each share: a block multiplies two tiles of 16 weight rows
// by up to 8 * kTiles activation rows.
//
// Why it is written so. With R rows in the call a weight takes part in R multiply-adds and is two bytes in
// half precision: R operations a byte. An A100 (312 TFLOP/s, 1.56 TB/s) and an Orin AGX (42 TFLOP/s dense,
// 205 GB/s) both turn from memory-bound to compute-bound near 200. A draft round has about 10 rows, so the
// weights' one trip from DRAM is the cost, and everything else only has to stay out of its way:
//
// - The weights are the 16-row operand of the mma and the activations its 8-row operand, so 10 rows are padded
//   to 16, not 64.
// - No weight is needed twice, so none goes through shared memory: 16 bytes a lane, global to register (see
//   mma.cuh).
// - The eight warps split k, not the rows: a weight is loaded by one lane of the whole grid, exactly once, and
//   a block walks 512 contiguous bytes of each of its 32 weight rows at a time.
// - The next kAhead steps of weights are already under way while one is multiplied: per warp 2 KiB a step.
// - Activations are read through L1, which the weights bypass. Each block reads them all: (padded rows / 32)
//   bytes for every weight byte, out of L2. At 128 rows that is four times the weights, and L2, not DRAM, sets
//   the pace there.
//
// Right on an H200 (`python3 tests/gpu/run.py 1`); these figures are estimates, and none of them was measured on a GPU.
#pragma once

#include "memory.cuh"
#include "mma.cuh"

namespace jakiro {

constexpr int kMostRows = 128;  // activation rows in one launch
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
/// Blocks a multiprocessor should hold: two while registers allow, so that one multiplies while the other
/// adds up.
template <class T, int kTiles>
constexpr int kBlocks = kTiles * sizeof(T) <= 8 ? 2 : 1;

constexpr int kTileRows = 16;    // weight rows in a tile: an mma's m
constexpr int kTileColumns = 8;  // activation rows in a tile: an mma's n

/// 16 bytes of a row, k .. k + 16 / sizeof(T) - 1; zeros past its end and for no row at all. kAligned: rows
/// start on 16 bytes, and their length is a multiple of them. kOnce: these bytes are weights.
template <class T, bool kAligned, bool kOnce>
__device__ __forceinline__ uint4 load_fragment(const T* row, int k, int size) {
  uint4 fragment = make_uint4(0, 0, 0, 0);
  if (row == nullptr || k >= size) return fragment;
  if constexpr (kAligned) {
    const auto* address = reinterpret_cast<const uint4*>(row + k);
    if constexpr (kOnce) return load_once(address);
    return load(address);
  } else {
    constexpr int kCount = 16 / sizeof(T);
    T values[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = k + i < size ? load(row + k + i) : from_float<T>(0.0f);
    memcpy(&fragment, values, sizeof fragment);
    return fragment;
  }
}

/// What one lane holds of 64 bytes of k of both weight tiles: rows `group` and `group + 8` of each.
struct WeightFragments {
  uint4 low[2], high[2];
};

template <class T, bool kAligned>
__device__ __forceinline__ WeightFragments load_weights(const T* const (&low)[2], const T* const (&high)[2], int k, int size) {
  WeightFragments weights;
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
    weights.low[tile] = load_fragment<T, kAligned, true>(low[tile], k, size);
    weights.high[tile] = load_fragment<T, kAligned, true>(high[tile], k, size);
  }
  return weights;
}

/// This warp's share of sums[tile][j] += weights[tile][16, size] * activations[tile][8 rows j, size]^T.
///
/// low[t], high[t]: weight rows group and group + 8 of tile t (null: past the matrix). inputs[t] + row[j] *
/// size is the activation row of this lane's group in column tile j; row[j] < 0: none. kOneInput: inputs[0]
/// == inputs[1], loaded once.
template <class T, int kTiles, bool kAligned, bool kOneInput>
__device__ __forceinline__ void multiply(float (&sums)[2][kTiles][4], const T* const (&low)[2], const T* const (&high)[2],
                                         const T* const (&inputs)[2], const int (&row)[kTiles], int tiles, int size) {
  constexpr int kRun = 64 / sizeof(T);         // values of k in a warp's step: 4 lanes of 16 bytes
  constexpr int kStride = kWarps * kRun;       // to this warp's next step
  constexpr int kAhead = kTiles <= 8 ? 2 : 1;  // steps of weights under way
  const int part = threadIdx.x % 4, warp = threadIdx.x / 32;
  WeightFragments ahead[kAhead];
  const int lane_k = warp * kRun + part * (kRun / 4);
#pragma unroll
  for (int i = 0; i < kAhead; ++i) ahead[i] = load_weights<T, kAligned>(low, high, lane_k + i * kStride, size);
  for (int first = 0; warp * kRun + first < size; first += kAhead * kStride) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int k = lane_k + first + i * kStride;
      const WeightFragments weights = ahead[i];
      ahead[i] = load_weights<T, kAligned>(low, high, k + kAhead * kStride, size);
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        if (j >= tiles) continue;  // the same for the whole block
        const T* base = row[j] < 0 ? nullptr : inputs[0] + static_cast<size_t>(row[j]) * size;
        uint4 x = load_fragment<T, kAligned, false>(base, k, size);
        multiply_fragment<T>(sums[0][j], weights.low[0], weights.high[0], x);
        if constexpr (!kOneInput) {
          base = row[j] < 0 ? nullptr : inputs[1] + static_cast<size_t>(row[j]) * size;
          x = load_fragment<T, kAligned, false>(base, k, size);
        }
        multiply_fragment<T>(sums[1][j], weights.low[1], weights.high[1], x);
      }
    }
  }
}

/// Shared memory for `reduce`: two buffers of a column tile's partial sums [warp][weight
/// tile][register][lane].
constexpr int kPartialSums = kWarps * 2 * 4 * 32;
constexpr int kReduceBytes = 2 * kPartialSums * static_cast<int>(sizeof(float));

/// Adds the eight warps' sums and calls finish(slot, weight row in the tile, sum of tile 0, sum of tile 1)
/// once for each of the 16 x 8 elements of every column tile. Lanes touch consecutive words, so no bank
/// conflicts. The buffers take turns: one barrier a tile is enough, because a buffer is written again only
/// after the next tile's barrier. The order of the additions is fixed, so a call's result does not depend on
/// timing.
template <int kTiles, class Finish>
__device__ __forceinline__ void reduce(const float (&sums)[2][kTiles][4], float* shared, int tiles, Finish finish) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    if (j >= tiles) continue;
    float* buffer = shared + (j % 2) * kPartialSums;
#pragma unroll
    for (int tile = 0; tile < 2; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) store_shared(buffer + ((warp * 2 + tile) * 4 + i) * 32 + lane, sums[tile][j][i]);
    __syncthreads();
    if (threadIdx.x < kTileRows * kTileColumns) {
      float total[2] = {0, 0};
#pragma unroll
      for (int other = 0; other < kWarps; ++other)
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) total[tile] += load_shared(buffer + (other * 2 + tile) * 128 + threadIdx.x);
      const int i = warp;  // the mma register this thread finishes: 0..3
      finish(j * kTileColumns + 2 * (lane % 4) + i % 2, lane / 4 + 8 * (i / 2), total[0], total[1]);
    }
  }
}

/// The activation rows of this lane's group, one for each column tile: entry `slot` of the list, or `slot`
/// itself.
template <int kTiles>
__device__ __forceinline__ void find_rows(int (&row)[kTiles], const int* list, int count) {
  const int group = threadIdx.x % 32 / 4;
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    const int slot = j * kTileColumns + group;
    row[j] = slot >= count ? -1 : list == nullptr ? slot : load(list + slot);
  }
}

}  // namespace jakiro
