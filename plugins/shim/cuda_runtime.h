// Stands in for <cuda_runtime.h> when the kernels are compiled by a host compiler: CUDA's keywords and
// built-in variables, in terms of the fibers in fiber.h. A CUDA thread is a fiber; a block is run to its end
// before the next.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda_runtime_api.h"
#include "fiber.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint4 {
  unsigned x, y, z, w;
};

struct float4 {
  float x, y, z, w;
};

inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

#define threadIdx (::shim::thread_index())
#define blockIdx (::shim::block_index())

inline void __syncthreads() { ::shim::barrier(); }

inline unsigned __ballot_sync(unsigned, int predicate) {
  unsigned lanes[32];
  ::shim::exchange(static_cast<unsigned>(predicate != 0), lanes);
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane) ballot |= lanes[lane] << lane;
  return ballot;
}

template <class V>
V __shfl_sync(unsigned, V value, int source) {
  V lanes[32];
  ::shim::exchange(value, lanes);
  return lanes[source & 31];
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
