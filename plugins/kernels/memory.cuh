// Every access to global and shared memory goes through these few functions. On a GPU each is one
// instruction; in the CPU build (shim/memory.h) each is also checked and counted.
#pragma once

#ifdef JAKIRO_SHIM
#include "memory.h"
#else

namespace jakiro {

template <class V>
__device__ __forceinline__ V load(const V* address) {
  return *address;
}

/// For bytes that this launch reads once: they pass the L1 cache by and leave it to the activations.
__device__ __forceinline__ uint4 load_once(const uint4* address) {
  uint4 value;
  asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
      : "l"(address));
  return value;
}

template <class V>
__device__ __forceinline__ void store(V* address, V value) {
  *address = value;
}

template <class V>
__device__ __forceinline__ V load_shared(const V* address) {
  return *address;
}

template <class V>
__device__ __forceinline__ void store_shared(V* address, V value) {
  *address = value;
}

/// The block's dynamic shared memory.
__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

}  // namespace jakiro

#endif
