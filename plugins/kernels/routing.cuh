// How much of which expert a row takes: the arithmetic of the router, one thread a row.
#pragma once

#include "memory.cuh"
#include "numeric.cuh"

namespace jakiro {

/// Whether `expert` is among the `top_k` largest of logits[0..experts-1]; of equal ones the lower index is
/// first.
template <class T>
__device__ __forceinline__ bool is_chosen(const T* logits, int experts, int top_k, int expert) {
  const float own = to_float(load(logits + expert));
  int before = 0;
  for (int other = 0; other < experts; ++other) {
    const float logit = to_float(load(logits + other));
    before += logit > own || (logit == own && other < expert);
  }
  return before < top_k;
}

struct Softmax {
  float largest = -INFINITY, total = 0;

  __device__ __forceinline__ void add(float logit) {
    const float above = fmaxf(largest, logit);
    total = total * expf(largest - above) + expf(logit - above);
    largest = above;
  }
  __device__ __forceinline__ float operator()(float logit) const { return expf(logit - largest) / total; }
};

/// Factors of experts 0 and 1 in the contrast: p0 and -p1 if the first logit is the larger, else -p0 and p1.
template <class T>
__device__ __forceinline__ void contrast_factors(const T* logits, float& first, float& second) {
  const float g0 = to_float(load(logits)), g1 = to_float(load(logits + 1));
  Softmax softmax;
  softmax.add(g0);
  softmax.add(g1);
  const float sign = g0 > g1 ? 1.0f : -1.0f;
  first = sign * softmax(g0);
  second = -sign * softmax(g1);
}

}  // namespace jakiro
