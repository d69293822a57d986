// The kernels' memory accesses on the CPU: each is checked and counted before it happens. See
// kernels/memory.cuh for the same functions on a GPU.
#pragma once

#include "counters.h"
#include "cuda_runtime.h"

#define JAKIRO_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace jakiro {

template <class V>
V load(const V* address, JAKIRO_SITE) {
  V value{};
  if (shim::counters().on_global(reinterpret_cast<std::uintptr_t>(address), sizeof(V), false, {file, line}))
    std::memcpy(&value, address, sizeof(V));
  return value;
}

template <class V>
V load_once(const V* address, JAKIRO_SITE) {
  return load(address, file, line);
}

template <class V>
void store(V* address, V value, JAKIRO_SITE) {
  if (shim::counters().on_global(reinterpret_cast<std::uintptr_t>(address), sizeof(V), true, {file, line}))
    std::memcpy(address, &value, sizeof(V));
}

template <class V>
V load_shared(const V* address, JAKIRO_SITE) {
  V value{};
  const std::size_t offset = reinterpret_cast<const unsigned char*>(address) - shim::shared();
  if (shim::counters().on_shared(offset, sizeof(V), false, {file, line})) std::memcpy(&value, address, sizeof(V));
  return value;
}

template <class V>
void store_shared(V* address, V value, JAKIRO_SITE) {
  const std::size_t offset = reinterpret_cast<unsigned char*>(address) - shim::shared();
  if (shim::counters().on_shared(offset, sizeof(V), true, {file, line})) std::memcpy(address, &value, sizeof(V));
}

inline unsigned char* shared_memory() { return shim::shared(); }

}  // namespace jakiro
