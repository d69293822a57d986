// Prepacked weights: a copy in the order in which a kernel reads them, in huge pages.
//
// Why a copy: ONNX Runtime maps the weights file in pages of 4 KiB, and reading 100 MB a step through those loses a quarter of
// the memory bandwidth to TLB misses. The mapped originals are clean file pages, which the system reclaims at need.
#pragma once

#include <cstddef>
#include <memory>

namespace jakiro {

struct PrepackedWeight {
  const void* data = nullptr;
  size_t bytes = 0;
  std::shared_ptr<void> owner;  // the mapping, shared by several weights and unmapped with the last of them
};

// A copy of `bytes` bytes, aligned to 64 bytes; empty where there is no memory for it.
PrepackedWeight copy_to_large_pages(const void* data, size_t bytes);

}  // namespace jakiro
