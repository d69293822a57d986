// Weights in large pages. ONNX Runtime maps a file, in pages of 4 KiB; reading 100 MB a step through those costs a quarter of the
// memory's bandwidth in address translation. The mapped originals are clean pages of a file, which the system takes back at need.
#pragma once

#include <cstddef>
#include <memory>

namespace jakiro {

struct Kept {
  const void* data = nullptr;
  size_t bytes = 0;
  std::shared_ptr<void> owner;  // memory shared by several weights; goes with the last of them
};

// A copy of `bytes` bytes, aligned to 64; empty where memory cannot be had.
Kept keep(const void* data, size_t bytes);

}  // namespace jakiro
