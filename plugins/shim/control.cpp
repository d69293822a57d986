// C functions by which the tests steer the shim and read its counters.
#include <cstring>
#include <string>

#include "counters.h"
#include "fiber.h"

namespace shim {
void schedule(std::uint64_t seed);
std::string take_error();
}  // namespace shim

#define JAKIRO_EXPORT extern "C" __attribute__((visibility("default")))

/// 0: threads and blocks in order; anything else: shuffled by that seed.
JAKIRO_EXPORT void jakiro_shim_schedule(std::uint64_t seed) { shim::schedule(seed); }

/// Makes a buffer known. Once one is, an access outside all known ones is a fault.
JAKIRO_EXPORT void jakiro_shim_buffer(const char* name, void* base, std::size_t bytes, int writable) {
  shim::counters().buffers.push_back({name, reinterpret_cast<std::uintptr_t>(base), bytes, writable != 0});
}

JAKIRO_EXPORT void jakiro_shim_clear(int detailed) {
  shim::take_error();
  shim::counters().clear();
  shim::counters().detailed = detailed != 0;
}

/// Off: a race goes unreported, and only its effect on the result is seen.
JAKIRO_EXPORT void jakiro_shim_check_races(int on) { shim::counters().check_races = on != 0; }

/// Writes the counters as JSON; returns the length it needs.
JAKIRO_EXPORT std::size_t jakiro_shim_counters(char* text, std::size_t size) {
  const std::string json = shim::counters().json();
  if (size > json.size()) std::memcpy(text, json.c_str(), json.size() + 1);
  return json.size() + 1;
}

/// Writes the first fault since the last call, or an empty string.
JAKIRO_EXPORT void jakiro_shim_error(char* text, std::size_t size) {
  const std::string error = shim::take_error();
  const std::size_t length = error.size() < size ? error.size() : size - 1;
  std::memcpy(text, error.data(), length);
  text[length] = 0;
}
