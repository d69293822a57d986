// Runs a CUDA grid on one host thread. Every CUDA thread of a block is a fiber with its own stack; fibers
// give way at barriers and warp-wide exchanges only. Which fiber goes next is drawn from a seed: a kernel
// that is right only in one order of its threads fails under another. Seed 0 is the plain order of thread
// numbers.
//
// Faults (a barrier that some thread never reaches, a race, an access outside a known buffer) are recorded,
// the first one kept, and the launch then returns cudaErrorLaunchFailure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

#include "cuda_runtime_api.h"

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace shim {

struct Thread {
  int index = 0;       // in its block
  unsigned syncs = 0;  // warp-wide exchanges passed: orders accesses inside a warp
  int warp() const { return index / 32; }
  int lane() const { return index % 32; }
};

dim3 thread_index();
dim3 block_index();
Thread& thread();
unsigned epoch();         // barriers the block has passed
unsigned char* shared();  // the block's dynamic shared memory, filled with NaN before it starts
std::size_t shared_size();

void barrier();

/// Gives `bytes` of this lane to every lane of its warp; `combine`, if set, runs once on all 32 values before
/// anyone reads them. Returns the 32 slots, `kSlot` bytes apart.
constexpr std::size_t kSlot = 64;
const unsigned char* exchange(const void* value, std::size_t bytes, void (*combine)(unsigned char* slots));

template <class V>
void exchange(V value, V (&lanes)[32]) {
  const unsigned char* slots = exchange(&value, sizeof(V), nullptr);
  for (int lane = 0; lane < 32; ++lane) std::memcpy(&lanes[lane], slots + lane * kSlot, sizeof(V));
}

void fail(const std::string& what);
cudaError_t run_grid(dim3 grid, int threads, std::size_t shared_bytes, const std::function<void()>& kernel);

}  // namespace shim
