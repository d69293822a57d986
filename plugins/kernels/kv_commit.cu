#include "kv_commit.cuh"

#include "launch.cuh"

cudaError_t jakiro_kv_commit(const JakiroKvCommit* arguments, cudaStream_t stream) {
  const JakiroKvCommit& p = *arguments;
  if (p.tensors < 0 || p.tensors > 65535 || p.batch < 0 || p.heads < 0 || p.rows < 0 || p.capacity < 0)
    return cudaErrorInvalidValue;
  if (p.tensors == 0 || p.batch == 0 || p.heads == 0 || p.most_accepted <= 0) return cudaSuccess;
  return jakiro::launch(jakiro::kv_commit, dim3(p.batch * p.heads, p.tensors), jakiro::kCommitThreads, 0, stream, p);
}
