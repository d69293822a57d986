// Hadamard rotation of activations: x H for the normalized Hadamard matrix H, block by block, as a fast Walsh-Hadamard transform.
//
// Why: a few entries of an activation are outliers that would leave the others few quantization steps. The rotation spreads an
// outlier over its block, and since H is orthogonal and the weights were rotated alike at export, the matmul's result stays the
// same (QuaRot, https://arxiv.org/abs/2404.00456). The transform takes block * log2(block) additions and reads no matrix.
#pragma once

#include <cmath>
#include <cstdint>

#include "simd.h"

namespace jakiro {

// The usual block in four vectors: stages within a vector are butterflies of lanes, the last two are sums of vectors.
inline void hadamard_64(float* x) {
  Floats r[4];
  for (int n = 0; n < 4; ++n) r[n] = butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(load(x + kLanes * n)))));
  const Floats scale = broadcast(0.125f), a = r[0] + r[1], b = r[0] - r[1], c = r[2] + r[3], d = r[2] - r[3];
  store(x, (a + c) * scale);
  store(x + 16, (b + d) * scale);
  store(x + 32, (a - c) * scale);
  store(x + 48, (b - d) * scale);
}

// x [block], in place; block is a power of two.
inline void hadamard(float* x, int64_t block) {
  if (block == 64) return hadamard_64(x);
  for (int64_t half = 1; half < block; half *= 2) {
    for (int64_t start = 0; start < block; start += 2 * half) {
      for (int64_t n = start; n < start + half; ++n) {
        const float left = x[n], right = x[n + half];
        x[n] = left + right;
        x[n + half] = left - right;
      }
    }
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(block));
  for (int64_t n = 0; n < block; ++n) x[n] *= scale;
}

}  // namespace jakiro
