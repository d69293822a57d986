// Second half of a two-expert mixture, and all of its combination: primary = w0 E0 + w1 E1, contrast = c0 E0
// + c1 E1, where Ee = down[e] h[e]. With gate_up this is the whole operator: two launches.
//
// One block makes 16 output columns for every row: its two weight tiles are the same 16 rows of down[0] and
// down[1], so E0 and E1 of an element end in one thread, which forms both outputs in float and rounds each
// once. The router (four logits a row) is evaluated again by every block, while its first weights are on
// their way: that is cheaper than a launch. Grid: hidden / 16. The loop and its reasons are in tiles.cuh.
//
// Bytes, for Llama-2-7B's head (hidden = inner = 4096, half, 10 rows): down 67.1 MB, h 0.16 MB, outputs 0.16
// MB. 0.67 GFLOP. Roofline: A100 (1.56 TB/s) 43 us, Orin AGX (205 GB/s) 0.33 ms. 256 blocks on an A100's 108
// SMs: the last blocks leave some idle, and only a measurement will say how much that costs.
//
// Right on an H200 (`python3 tests/gpu/run.py 1`); these figures are estimates, and none of them was measured on a GPU.
#pragma once

#include "routing.cuh"
#include "tiles.cuh"

namespace jakiro {

template <class T>
struct DownPair {
  const T* h;        // [2, kMostRows, inner]
  const T* weights;  // [2, hidden, inner]
  const T* logits;   // [rows, 4]
  T* primary;        // [rows, hidden]
  T* contrast;       // [rows, hidden]
  int rows, hidden, inner, top_k;
  bool with_contrast;  // false: zeros
};

constexpr int kDownPairBytes = kReduceBytes + kMostRows * static_cast<int>(sizeof(float4));

template <class T, int kTiles, bool kAligned>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kTiles>) down_pair(DownPair<T> p) {
  const int first = blockIdx.x * kTileRows, group = threadIdx.x % 32 / 4;
  const int tiles = (p.rows + kTileColumns - 1) / kTileColumns;
  auto* partial = reinterpret_cast<float*>(shared_memory());
  auto* factors = reinterpret_cast<float4*>(shared_memory() + kReduceBytes);  // w0, w1, c0, c1 of each row

  const int r = threadIdx.x;
  if (r < p.rows) {
    const T* logits = p.logits + r * 4;
    float4 factor = make_float4(0, 0, 0, 0);
    const bool chosen[2] = {is_chosen(logits, 2, p.top_k, 0), is_chosen(logits, 2, p.top_k, 1)};
    const float g[2] = {to_float(load(logits)), to_float(load(logits + 1))};
    Softmax softmax;
    for (int e = 0; e < 2; ++e)
      if (chosen[e]) softmax.add(g[e]);
    if (chosen[0]) factor.x = softmax(g[0]);
    if (chosen[1]) factor.y = softmax(g[1]);
    contrast_factors(logits + 2, factor.z, factor.w);
    store_shared(factors + r, factor);  // read after reduce's first barrier
  }

  const T* low[2];
  const T* high[2];
#pragma unroll
  for (int expert = 0; expert < 2; ++expert) {
    const T* start = p.weights + (static_cast<size_t>(expert) * p.hidden + first + group) * p.inner;
    low[expert] = first + group < p.hidden ? start : nullptr;
    high[expert] = first + group + 8 < p.hidden ? start + static_cast<size_t>(8) * p.inner : nullptr;
  }
  const T* const inputs[2] = {p.h, p.h + static_cast<size_t>(kMostRows) * p.inner};
  int row[kTiles];
  find_rows(row, nullptr, p.rows);
  float sums[2][kTiles][4] = {};
  multiply<T, kTiles, kAligned, false>(sums, low, high, inputs, row, tiles, p.inner);

  reduce<kTiles>(sums, partial, tiles, [&](int slot, int tile_row, float e0, float e1) {
    const int column = first + tile_row;
    if (slot >= p.rows || column >= p.hidden) return;
    const float4 factor = load_shared(factors + slot);
    const size_t at = static_cast<size_t>(slot) * p.hidden + column;
    store(p.primary + at, from_float<T>(factor.x * e0 + factor.y * e1));
    store(p.contrast + at, from_float<T>(p.with_contrast ? factor.z * e0 + factor.w * e1 : 0.0f));
  });
}

}  // namespace jakiro
