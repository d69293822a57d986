// The C entry point of GroupMatMul: sizes are checked here, once, for every caller.
#include "group_matmul.cuh"

#include <algorithm>
#include <limits>

#include "jakiro_plugins.h"
#include "launch.cuh"

namespace jakiro {

constexpr int kGroupRows = 64;  // of a launch; more take several, which find the weights in L2

template <class T>
cudaError_t group_matmul_rows(const GroupMatmul<T>& p, cudaStream_t stream) {
  void (*const kernel)(GroupMatmul<T>) = p.rows <= 8    ? group_matmul<T, 1>
                                         : p.rows <= 16 ? group_matmul<T, 2>
                                         : p.rows <= 32 ? group_matmul<T, 4>
                                                        : group_matmul<T, 8>;
  const dim3 grid(static_cast<unsigned>((p.out + kGroupOutputs - 1) / kGroupOutputs));
  return launch(kernel, grid, kGroupThreads, kGroupShared, stream, p);
}

template <class T>
cudaError_t group_matmul_all(const JakiroGroupMatMul& p, cudaStream_t stream) {
  for (int64_t row = 0; row < p.rows; row += kGroupRows) {
    const GroupMatmul<T> part{static_cast<const T*>(p.x) + row * p.in,
                              static_cast<const uint32_t*>(p.weights),
                              static_cast<const T*>(p.scales),
                              static_cast<T*>(p.y) + row * p.out,
                              static_cast<int>(std::min<int64_t>(kGroupRows, p.rows - row)),
                              static_cast<int>(p.in),
                              static_cast<int>(p.out),
                              p.group};
    const cudaError_t error = group_matmul_rows(part, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace jakiro

cudaError_t jakiro_group_matmul(const JakiroGroupMatMul* arguments, cudaStream_t stream) {
  const JakiroGroupMatMul& p = *arguments;
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  if (p.rows < 0 || p.in < 1 || p.out < 1 || p.in > kMost || p.out > kMost || p.out % 8 != 0 ||
      (p.group != 32 && p.group != 64 && p.group != 128) || p.in % p.group != 0)
    return cudaErrorInvalidValue;
  if (p.type == JAKIRO_HALF) return jakiro::group_matmul_all<jakiro::half>(p, stream);
  if (p.type == JAKIRO_BFLOAT16) return jakiro::group_matmul_all<jakiro::bfloat16>(p, stream);
  return cudaErrorInvalidValue;
}
