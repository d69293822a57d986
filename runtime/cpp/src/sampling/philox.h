// Philox 4x32-10: one pseudo-random number for each seed and position (Salmon et al., SC 2011).
#pragma once

#include <array>
#include <cstdint>

namespace jakiro::runtime {

// Ten rounds: four 32-bit numbers from a 64-bit key and a 128-bit counter.
inline std::array<uint32_t, 4> philox(uint32_t key0, uint32_t key1, std::array<uint32_t, 4> counter) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t{counter[0]} * 0xD2511F53, second = uint64_t{counter[2]} * 0xCD9E8D57;
    counter = {static_cast<uint32_t>(second >> 32) ^ counter[1] ^ key0, static_cast<uint32_t>(second),
               static_cast<uint32_t>(first >> 32) ^ counter[3] ^ key1, static_cast<uint32_t>(first)};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

// The pseudo-random number of a position, in [0, 1) with 53 bits: key seed, counter position.
inline double uniform(uint64_t seed, uint64_t position) {
  const auto found = philox(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
                            {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0});
  return (static_cast<double>(found[0] >> 5) * 67108864.0 + static_cast<double>(found[1] >> 6)) / 9007199254740992.0;
}

}  // namespace jakiro::runtime
