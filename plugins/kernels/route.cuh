// More than two experts: which rows each expert works on, and with what weight. One block, one thread a row.
//
// The lists are in row order (a ballot counts the rows before a thread), never in order of arrival, so that a
// call's result is the same every time. Experts 0 and 1 also list the rows that did not choose them while
// there is a contrast to form. A list of its own for every expert costs experts * 512 bytes of workspace and
// saves the arithmetic on rows that do not want the expert; an expert with an empty list costs no weight
// traffic at all.
//
// Bytes: logits, lists and weights, all together rows * experts * 10: nothing. It exists because every later
// block needs its result: about 3 us of launch and latency, on any GPU.
//
// Right on an H200 (`python3 tests/gpu/run.py 1`); these figures are estimates, and none of them was measured on a GPU.
#pragma once

#include "routing.cuh"
#include "tiles.cuh"

namespace jakiro {

template <class T>
struct Route {
  const T* logits;  // [rows, experts + 2]
  int* counts;      // [experts]
  int* lists;       // [experts, kMostRows]
  float* weights;   // [experts + 2, kMostRows]: of each expert in primary; then of experts 0 and 1 in contrast
  int rows, experts, top_k;
  bool with_contrast;
};

constexpr int kRouteWarps = kMostRows / 32;
constexpr int kRouteBytes = 2 * kRouteWarps * static_cast<int>(sizeof(int));

template <class T>
__global__ void __launch_bounds__(kMostRows) route(Route<T> p) {
  const int r = threadIdx.x, lane = r % 32, warp = r / 32;
  const bool real = r < p.rows;
  const T* logits = p.logits + static_cast<size_t>(r) * (p.experts + 2);
  Softmax softmax;
  for (int e = 0; real && e < p.experts; ++e)
    if (is_chosen(logits, p.experts, p.top_k, e)) softmax.add(to_float(load(logits + e)));

  auto* warp_counts = reinterpret_cast<int*>(shared_memory());  // [2][kRouteWarps], taking turns as in reduce()
  for (int e = 0; e < p.experts; ++e) {
    const bool chosen = real && is_chosen(logits, p.experts, p.top_k, e);
    const bool listed = chosen || (real && p.with_contrast && e < 2);
    const unsigned ballot = __ballot_sync(~0u, listed);
    int* turn = warp_counts + e % 2 * kRouteWarps;
    if (lane == 0) store_shared(turn + warp, __popc(ballot));
    __syncthreads();
    int before = 0, total = 0;
    for (int other = 0; other < kRouteWarps; ++other) {
      const int count = load_shared(turn + other);
      before += other < warp ? count : 0;
      total += count;
    }
    if (listed) store(p.lists + e * kMostRows + before + __popc(ballot & ((1u << lane) - 1)), r);
    if (real) store(p.weights + e * kMostRows + r, chosen ? softmax(to_float(load(logits + e))) : 0.0f);
    if (r == 0) store(p.counts + e, total);
  }
  if (real) {
    float first, second;
    contrast_factors(logits + p.experts, first, second);
    store(p.weights + p.experts * kMostRows + r, first);
    store(p.weights + (p.experts + 1) * kMostRows + r, second);
  }
}

}  // namespace jakiro
