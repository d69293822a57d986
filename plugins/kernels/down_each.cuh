// More than two experts, second half: y[e, r] = down[e] h[e, r] for the rows on each expert's list.
//
// One block makes 32 output columns of one expert: two neighbouring weight tiles that share their
// activations. Grid: hidden / 32 x experts. y stays in float, so that the sum over experts (combine.cuh)
// rounds once. The loop and its reasons are in tiles.cuh.
//
// Bytes, for Mixtral-like 8 experts, top 2, hidden = inner = 4096, half, 10 rows that reach all eight: down
// 268 MB, h 0.2 MB, y 0.3 MB. Roofline: A100 (1.56 TB/s) 172 us, Orin AGX (205 GB/s) 1.3 ms; each idle expert
// takes an eighth off.
//
// Right on an H200 (`python3 tests/gpu/run.py 1`); these figures are estimates, and none of them was measured on a GPU.
#pragma once

#include "tiles.cuh"

namespace jakiro {

template <class T>
struct DownEach {
  const T* h;        // [experts, kMostRows, inner]
  const T* weights;  // [experts, hidden, inner]
  float* y;          // [experts, kMostRows, hidden]
  int hidden, inner;
  const int* counts;  // [experts]
  const int* lists;   // [experts, kMostRows]
};

template <class T, int kTiles, bool kAligned>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kTiles>) down_each(DownEach<T> p) {
  const int expert = blockIdx.y, first = blockIdx.x * 2 * kTileRows, group = threadIdx.x % 32 / 4;
  const int* list = p.lists + expert * kMostRows;
  const int count = load(p.counts + expert);
  if (count == 0) return;
  const int tiles = (count + kTileColumns - 1) / kTileColumns;

  const T* low[2];
  const T* high[2];
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
    const int column = first + tile * kTileRows + group;
    const T* start = p.weights + (static_cast<size_t>(expert) * p.hidden + column) * p.inner;
    low[tile] = column < p.hidden ? start : nullptr;
    high[tile] = column + 8 < p.hidden ? start + static_cast<size_t>(8) * p.inner : nullptr;
  }
  const T* h = p.h + static_cast<size_t>(expert) * kMostRows * p.inner;
  const T* const inputs[2] = {h, h};
  int row[kTiles];
  find_rows(row, list, count);
  float sums[2][kTiles][4] = {};
  multiply<T, kTiles, kAligned, true>(sums, low, high, inputs, row, tiles, p.inner);

  float* y = p.y + static_cast<size_t>(expert) * kMostRows * p.hidden;
  reduce<kTiles>(sums, reinterpret_cast<float*>(shared_memory()), tiles, [&](int slot, int tile_row, float left, float right) {
    if (slot >= count) return;
    float* at = y + static_cast<size_t>(load(list + slot)) * p.hidden;
    const int column = first + tile_row;
    if (column < p.hidden) store(at + column, left);
    if (column + kTileRows < p.hidden) store(at + column + kTileRows, right);
  });
}

}  // namespace jakiro
