// The accepted rows of every layer's new keys and values go to the tail of its cache, all in one launch.
//
// Verification writes no cache: it returns the new rows, and those on the accepted path are copied
// afterwards. Copying with one memcpy a layer, tensor and row would be 64 * 5 calls a round for a 32-layer
// model; here a block takes one head of one tensor of one sequence, and its threads stride over (accepted
// row, 16 bytes of it). The tensors' addresses are in a table that is filled once, so a CUDA graph that
// captured the launch stays valid while the contents change.
//
// Bytes, for Llama-2-7B in half (32 layers, 32 heads of 128) and 5 accepted rows: 64 * 32 * 5 * 256 = 2.6 MB
// read, 2.6 MB written, in runs of 256 bytes. Roofline: A100 (1.56 TB/s) 3.4 us, Orin AGX (205 GB/s) 26 us.
//
// Right on an H200 (`python3 tests/gpu/run.py 1`); these figures are estimates, and none of them was measured on a GPU.
#pragma once

#include "jakiro_plugins.h"
#include "memory.cuh"

namespace jakiro {

constexpr int kCommitThreads = 128;

/// Copies this block's rows in units of V; their length must be a multiple of it.
template <class V>
__device__ __forceinline__ void commit_rows(const JakiroKvCommit& p, const void* from, void* to, int row_bytes, int b, int first,
                                            int count) {
  const int units = row_bytes / static_cast<int>(sizeof(V));
  for (int at = threadIdx.x; at < count * units; at += kCommitThreads) {
    const int i = at / units, unit = at % units;
    const int64_t row = load(p.accepted + static_cast<size_t>(b) * p.most_accepted + i);
    if (row < 0 || row >= p.rows || first + i >= p.capacity) continue;
    store(static_cast<V*>(to) + static_cast<size_t>(first + i) * units + unit,
          load(static_cast<const V*>(from) + static_cast<size_t>(row) * units + unit));
  }
}

__global__ void __launch_bounds__(kCommitThreads) kv_commit(JakiroKvCommit p) {
  const int tensor = blockIdx.y, b = blockIdx.x / p.heads;
  const int row_bytes = load(p.row_bytes + tensor);
  const size_t from_head = static_cast<size_t>(p.rows) * row_bytes, to_head = static_cast<size_t>(p.capacity) * row_bytes;
  const void* from = static_cast<const char*>(load(p.new_rows + tensor)) + blockIdx.x * from_head;
  void* to = static_cast<char*>(load(p.cache + tensor)) + blockIdx.x * to_head;
  const int64_t past = load(p.past_length + b), accepted = load(p.counts + b);
  if (past < 0 || past >= p.capacity) return;
  const int first = static_cast<int>(past);
  const int count = accepted < p.most_accepted ? static_cast<int>(accepted) : p.most_accepted;
  const auto addresses = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to);
  if (row_bytes % 16 == 0 && addresses % 16 == 0)
    commit_rows<uint4>(p, from, to, row_bytes, b, first, count);
  else if (row_bytes % 2 == 0 && addresses % 2 == 0)
    commit_rows<uint16_t>(p, from, to, row_bytes, b, first, count);
  else
    commit_rows<uint8_t>(p, from, to, row_bytes, b, first, count);
}

}  // namespace jakiro
