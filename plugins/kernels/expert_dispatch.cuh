// Host side of ExpertDispatch for one activation type: which kernels, in which variant, on which part of the
// workspace.
//
// Two experts: gate_up, down_pair. More: route, gate_up, down_each, combine. Calls of more than 128 rows
// (prompts) are cut into runs of 128, each of which reads the weights again; by then there is arithmetic
// enough to hide that, and the workspace stays small.
#pragma once

#include "combine.cuh"
#include "down_each.cuh"
#include "down_pair.cuh"
#include "gate_up.cuh"
#include "jakiro_plugins.h"
#include "launch.cuh"
#include "route.cuh"

namespace jakiro {

/// Where the parts of the workspace begin; `bytes` is all of it.
struct Workspace {
  size_t h, y, weights, lists, counts, bytes;

  Workspace(size_t element, int64_t hidden, int64_t inner, int experts) {
    const auto reserve = [this](size_t size) {
      const size_t start = bytes;
      bytes += (size + 255) / 256 * 256;
      return start;
    };
    bytes = 0;
    const bool many = experts > 2;
    h = reserve(experts * kMostRows * inner * element);
    y = reserve(many ? experts * kMostRows * hidden * sizeof(float) : 0);
    weights = reserve(many ? (experts + 2) * kMostRows * sizeof(float) : 0);
    lists = reserve(many ? experts * kMostRows * sizeof(int) : 0);
    counts = reserve(many ? experts * sizeof(int) : 0);
  }
};

template <class T, int kTiles, bool kAligned>
cudaError_t dispatch_pair(const JakiroExpertDispatch& p, T* h, cudaStream_t stream) {
  const int rows = static_cast<int>(p.rows), hidden = static_cast<int>(p.hidden), inner = static_cast<int>(p.inner);
  const GateUp<T> up{static_cast<const T*>(p.x), static_cast<const T*>(p.gate_up), h, rows, hidden, inner, nullptr, nullptr};
  const DownPair<T> down{h,
                         static_cast<const T*>(p.down),
                         static_cast<const T*>(p.router_logits),
                         static_cast<T*>(p.primary),
                         static_cast<T*>(p.contrast_output),
                         rows,
                         hidden,
                         inner,
                         p.top_k,
                         p.contrast != 0};
  const dim3 up_grid((inner + kTileRows - 1) / kTileRows, 2), down_grid((hidden + kTileRows - 1) / kTileRows);
  cudaError_t error = launch(gate_up<T, kTiles, kAligned>, up_grid, kThreads, kReduceBytes, stream, up);
  if (error == cudaSuccess) error = launch(down_pair<T, kTiles, kAligned>, down_grid, kThreads, kDownPairBytes, stream, down);
  return error;
}

template <class T, int kTiles, bool kAligned>
cudaError_t dispatch_many(const JakiroExpertDispatch& p, const Workspace& parts, cudaStream_t stream) {
  const int rows = static_cast<int>(p.rows), hidden = static_cast<int>(p.hidden), inner = static_cast<int>(p.inner);
  const bool with_contrast = p.contrast != 0;
  auto* base = static_cast<char*>(p.workspace);
  auto* h = reinterpret_cast<T*>(base + parts.h);
  auto* y = reinterpret_cast<float*>(base + parts.y);
  auto* weights = reinterpret_cast<float*>(base + parts.weights);
  auto* lists = reinterpret_cast<int*>(base + parts.lists);
  auto* counts = reinterpret_cast<int*>(base + parts.counts);
  const Route<T> router{static_cast<const T*>(p.router_logits), counts, lists, weights, rows, p.experts, p.top_k, with_contrast};
  const GateUp<T> up{static_cast<const T*>(p.x), static_cast<const T*>(p.gate_up), h, rows, hidden, inner, counts, lists};
  const DownEach<T> down{h, static_cast<const T*>(p.down), y, hidden, inner, counts, lists};
  const Combine<T> sum{y,         weights,      static_cast<T*>(p.primary), static_cast<T*>(p.contrast_output), hidden,
                       p.experts, with_contrast};
  const dim3 up_grid((inner + kTileRows - 1) / kTileRows, p.experts);
  const dim3 down_grid((hidden + 2 * kTileRows - 1) / (2 * kTileRows), p.experts);
  const dim3 sum_grid((hidden + kThreads - 1) / kThreads, rows);
  cudaError_t error = launch(route<T>, dim3(1), kMostRows, kRouteBytes, stream, router);
  if (error == cudaSuccess) error = launch(gate_up<T, kTiles, kAligned>, up_grid, kThreads, kReduceBytes, stream, up);
  if (error == cudaSuccess) error = launch(down_each<T, kTiles, kAligned>, down_grid, kThreads, kReduceBytes, stream, down);
  if (error == cudaSuccess) error = launch(combine<T>, sum_grid, kThreads, 0, stream, sum);
  return error;
}

template <class T, int kTiles, bool kAligned>
cudaError_t dispatch_run(const JakiroExpertDispatch& p, cudaStream_t stream) {
  const Workspace parts(sizeof(T), p.hidden, p.inner, p.experts);
  if (p.experts > 2) return dispatch_many<T, kTiles, kAligned>(p, parts, stream);
  return dispatch_pair<T, kTiles, kAligned>(p, reinterpret_cast<T*>(static_cast<char*>(p.workspace) + parts.h), stream);
}

/// At most kMostRows rows: the variant with the least padding. Odd sizes take one of two variants that load
/// value by value.
template <class T>
cudaError_t dispatch_rows(const JakiroExpertDispatch& p, cudaStream_t stream) {
  const auto addresses = reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.gate_up) |
                         reinterpret_cast<uintptr_t>(p.down) | reinterpret_cast<uintptr_t>(p.workspace);
  const size_t row_sizes = p.hidden * sizeof(T) | p.inner * sizeof(T);
  if (addresses % 16 != 0 || row_sizes % 16 != 0) return dispatch_run<T, 16, false>(p, stream);
  if (p.rows <= 8) return dispatch_run<T, 1, true>(p, stream);
  if (p.rows <= 16) return dispatch_run<T, 2, true>(p, stream);
  if (p.rows <= 32) return dispatch_run<T, 4, true>(p, stream);
  if (p.rows <= 64) return dispatch_run<T, 8, true>(p, stream);
  return dispatch_run<T, 16, true>(p, stream);
}

template <class T>
cudaError_t dispatch(JakiroExpertDispatch p, cudaStream_t stream) {
  const int64_t rows = p.rows;
  for (int64_t done = 0; done < rows; done += kMostRows) {
    p.rows = rows - done < kMostRows ? rows - done : kMostRows;
    const cudaError_t error = dispatch_rows<T>(p, stream);
    if (error != cudaSuccess) return error;
    p.x = static_cast<const T*>(p.x) + kMostRows * p.hidden;
    p.router_logits = static_cast<const T*>(p.router_logits) + kMostRows * (p.experts + 2);
    p.primary = static_cast<T*>(p.primary) + kMostRows * p.hidden;
    p.contrast_output = static_cast<T*>(p.contrast_output) + kMostRows * p.hidden;
  }
  return cudaSuccess;
}

}  // namespace jakiro
