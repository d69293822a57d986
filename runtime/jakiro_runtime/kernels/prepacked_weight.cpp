#include "prepacked_weight.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <mutex>

namespace jakiro {
namespace {

constexpr size_t kHugePage = size_t{1} << 21, kRegion = size_t{1} << 25;

struct Region {
  char* mapped;
  size_t length;
  char* free;
  char* end;

  explicit Region(size_t bytes) : length(std::max(bytes, kRegion) + 2 * kHugePage) {
    void* got = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mapped = got == MAP_FAILED ? nullptr : static_cast<char*>(got);
    free = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(mapped) + kHugePage - 1) / kHugePage * kHugePage);
    end = mapped == nullptr ? free : mapped + length;
    if (mapped != nullptr) madvise(free, end - free, MADV_HUGEPAGE);  // a hint: refused, the pages are small
  }
  ~Region() {
    if (mapped != nullptr) munmap(mapped, length);
  }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
};

}  // namespace

PrepackedWeight copy_to_large_pages(const void* data, size_t bytes) {
  static std::mutex mutex;
  static std::weak_ptr<Region> latest;
  const std::lock_guard<std::mutex> lock(mutex);
  const size_t room = (bytes + 63) / 64 * 64;
  std::shared_ptr<Region> region = latest.lock();
  if (region == nullptr || static_cast<size_t>(region->end - region->free) < room) {
    region = std::make_shared<Region>(room);
    if (region->mapped == nullptr) return {};
    latest = region;
  }
  char* place = region->free;
  std::memcpy(place, data, bytes);
  region->free += room;
  return {place, bytes, region};
}

}  // namespace jakiro
