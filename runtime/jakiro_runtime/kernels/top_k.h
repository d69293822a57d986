#pragma once

#include <cstdint>

namespace jakiro {

// The `count` largest entries of x [size], best first, and where they are; of equal entries the first. count is at most size.
void top_k(const float* x, int64_t size, int64_t count, float* best, int64_t* index);

}  // namespace jakiro
