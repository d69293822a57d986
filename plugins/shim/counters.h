// What the memory accesses of a kernel would cost a GPU, counted while the fibers run it.
//
// Global memory: bytes per buffer, and per warp instruction the 32-byte sectors touched against the fewest
// that could hold the same bytes. Shared memory: passes per warp instruction (1 = no bank conflict), and
// races: two threads, one of them writing, with neither a barrier nor, inside a warp, an exchange between
// them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

namespace shim {

struct Buffer {
  std::string name;
  std::uintptr_t base;
  std::size_t bytes;
  bool writable;
  std::uint64_t read = 0, written = 0;
};

struct Site {
  const char* file;
  int line;
  bool operator<(const Site& other) const { return std::tie(file, line) < std::tie(other.file, other.line); }
};

struct Cost {
  std::uint64_t instructions = 0;  // warp instructions
  std::uint64_t units = 0;         // sectors (global) or passes (shared)
  std::uint64_t fewest = 0;        // the minimum for any layout
};

class Counters {
 public:
  bool detailed = false;  // per-site counts; bytes, bounds and races are always kept
  bool check_races = true;
  std::vector<Buffer> buffers;
  std::uint64_t launches = 0;
  std::map<Site, Cost> global, shared;

  void begin_launch(std::size_t shared_bytes);
  void end_block();
  bool on_global(std::uintptr_t address, std::size_t bytes, bool write, Site site);  // false: do not touch it
  bool on_shared(std::size_t offset, std::size_t bytes, bool write, Site site);
  std::string json() const;
  void clear();

 private:
  struct Access {
    int lane;
    std::uintptr_t address;
    std::size_t bytes;
  };
  using Instruction = std::tuple<int, Site, unsigned>;  // warp, place in the source, how often this lane was there
  struct Word {
    int writer = -1, reader = -1;  // thread numbers; reader -2: several
    unsigned written = 0, read = 0, write_sync = 0, read_sync = 0;
  };

  void remember(std::map<Instruction, std::vector<Access>>& log, std::uintptr_t address, std::size_t bytes, Site site);
  void race(std::size_t word, bool write, Site site);

  std::map<Instruction, std::vector<Access>> global_log_, shared_log_;
  std::map<std::tuple<int, Site>, unsigned> visits_;
  std::vector<Word> words_;
};

Counters& counters();

}  // namespace shim
