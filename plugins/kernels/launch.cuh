// Launching a kernel: the one place where CUDA's own syntax and the CPU build differ.
#pragma once

#include <cuda_runtime.h>

namespace jakiro {

template <class Parameters>
cudaError_t launch(void (*kernel)(Parameters), dim3 grid, int threads, int shared_bytes, cudaStream_t stream,
                   const Parameters& parameters) {
#ifdef JAKIRO_SHIM
  (void)stream;
  return shim::run_grid(grid, threads, shared_bytes, [&] { kernel(parameters); });
#else
  kernel<<<grid, threads, shared_bytes, stream>>>(parameters);
  return cudaGetLastError();
#endif
}

}  // namespace jakiro
