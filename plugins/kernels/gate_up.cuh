// First half of an expert: h[e, r] = silu(gate[e] x[r]) * (up[e] x[r]).
//
// One block makes 16 values of h for every row: its two weight tiles are 16 gate rows and the 16 up rows that
// belong to them, so both factors of a product meet in one thread's registers and nothing but h is written.
// Grid: inner / 16 x experts. The loop and its reasons are in tiles.cuh. With `lists` (more than two experts)
// an expert works on the rows that chose it only; one that nobody chose returns before it has touched a
// weight.
//
// Bytes, for Llama-2-7B's head (hidden = inner = 4096, 2 experts, half, 10 rows): gate_up 134.2 MB, x 0.08
// MB, h 0.16 MB. 2 * 10 * 67 M = 1.3 GFLOP. Roofline: A100 (1.56 TB/s) 86 us, Orin AGX (205 GB/s) 0.66 ms;
// the arithmetic, padded to 16 rows, would take 7 us and 0.05 ms. h is stored in runs of 16 bytes (half a
// sector): 0.1 % of the traffic.
//
// Right on an H200 (`python3 tests/gpu/run.py 1`); these figures are estimates, and none of them was measured on a GPU.
#pragma once

#include "tiles.cuh"

namespace jakiro {

template <class T>
struct GateUp {
  const T* x;        // [rows, hidden]
  const T* weights;  // [experts, 2 * inner, hidden]
  T* h;              // [experts, kMostRows, inner]
  int rows, hidden, inner;
  const int* counts;  // [experts], or null: every expert takes every row
  const int* lists;   // [experts, kMostRows]
};

template <class T, int kTiles, bool kAligned>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kTiles>) gate_up(GateUp<T> p) {
  const int expert = blockIdx.y, first = blockIdx.x * kTileRows, group = threadIdx.x % 32 / 4;
  const int* list = p.counts == nullptr ? nullptr : p.lists + expert * kMostRows;
  const int count = p.counts == nullptr ? p.rows : load(p.counts + expert);
  if (count == 0) return;
  const int tiles = (count + kTileColumns - 1) / kTileColumns;

  const T* weights = p.weights + static_cast<size_t>(expert) * 2 * p.inner * p.hidden;
  const T* low[2];
  const T* high[2];
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {  // 0: gate, 1: up
    const T* start = weights + (static_cast<size_t>(tile) * p.inner + first + group) * p.hidden;
    low[tile] = first + group < p.inner ? start : nullptr;
    high[tile] = first + group + 8 < p.inner ? start + static_cast<size_t>(8) * p.hidden : nullptr;
  }
  const T* const inputs[2] = {p.x, p.x};
  int row[kTiles];
  find_rows(row, list, count);
  float sums[2][kTiles][4] = {};
  multiply<T, kTiles, kAligned, true>(sums, low, high, inputs, row, tiles, p.hidden);

  T* h = p.h + static_cast<size_t>(expert) * kMostRows * p.inner;
  reduce<kTiles>(sums, reinterpret_cast<float*>(shared_memory()), tiles, [&](int slot, int tile_row, float gate, float up) {
    const int i = first + tile_row;
    if (slot >= count || i >= p.inner) return;
    const int r = list == nullptr ? slot : load(list + slot);
    store(h + static_cast<size_t>(r) * p.inner + i, from_float<T>(gate / (1.0f + expf(-gate)) * up));
  });
}

}  // namespace jakiro
