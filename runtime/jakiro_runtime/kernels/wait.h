// How a thread waits for work that other threads of the same call are doing.
//
// Why not only spin: the wait is usually some microseconds, which a system call would double. But where other processes want the
// cores, the thread that is waited for may have none, and a spinning thread then burns the core that it needs.
#pragma once

#include <immintrin.h>

#include <atomic>
#include <cstdint>
#include <thread>

namespace jakiro {

constexpr int kSpins = 1 << 10;  // some 20 to 50 microseconds

// Returns when `done` has reached `count`.
inline void wait_for(const std::atomic<int64_t>& done, int64_t count) {
  for (int spins = 0; done.load(std::memory_order_acquire) < count; ++spins) {
    if (spins < kSpins) {
      _mm_pause();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace jakiro
