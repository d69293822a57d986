// More than two experts, the end: primary = sum of weight[e] * y[e], contrast = c0 * y[0] + c1 * y[1].
//
// One thread an element, experts in index order: neighbouring threads read neighbouring floats, and the sum
// has a fixed order. An expert of weight 0 is skipped without a read, because its y was never written.
//
// Bytes, for 8 experts, top 2, hidden 4096, half, 10 rows: y 0.33 MB (two experts a row), or 0.66 MB with
// contrast, and outputs 0.16 MB; it stays in L2. Below 3 us on either GPU, which is the launch itself.
//
// Right on an H200 (`python3 tests/gpu/run.py 1`); these figures are estimates, and none of them was measured on a GPU.
#pragma once

#include "tiles.cuh"

namespace jakiro {

template <class T>
struct Combine {
  const float* y;        // [experts, kMostRows, hidden]
  const float* weights;  // [experts + 2, kMostRows]
  T* primary;            // [rows, hidden]
  T* contrast;           // [rows, hidden]
  int hidden, experts;
  bool with_contrast;
};

template <class T>
__global__ void __launch_bounds__(kThreads) combine(Combine<T> p) {
  const int r = blockIdx.y, column = blockIdx.x * kThreads + threadIdx.x;
  if (column >= p.hidden) return;
  const size_t per_expert = static_cast<size_t>(kMostRows) * p.hidden, at = static_cast<size_t>(r) * p.hidden + column;
  float primary = 0, contrast = 0;
  for (int e = 0; e < p.experts; ++e) {
    const float weight = load(p.weights + e * kMostRows + r);
    const bool compared = p.with_contrast && e < 2;
    if (weight == 0 && !compared) continue;
    const float y = load(p.y + e * per_expert + at);
    primary += weight * y;
    if (compared) contrast += load(p.weights + (p.experts + e) * kMostRows + r) * y;
  }
  store(p.primary + at, from_float<T>(primary));
  store(p.contrast + at, from_float<T>(contrast));
}

}  // namespace jakiro
