#include "counters.h"

#include <algorithm>
#include <set>
#include <sstream>

#include "fiber.h"

namespace shim {
namespace {

std::string place(Site site) {
  const std::string path = site.file;
  return path.substr(path.rfind('/') + 1) + ":" + std::to_string(site.line);
}

}  // namespace

void Counters::begin_launch(std::size_t shared_bytes) {
  ++launches;
  words_.assign((shared_bytes + 3) / 4, Word());
}

void Counters::remember(std::map<Instruction, std::vector<Access>>& log, std::uintptr_t address, std::size_t bytes, Site site) {
  const unsigned visit = visits_[{thread().index, site}]++;
  log[{thread().warp(), site, visit}].push_back({thread().lane(), address, bytes});
}

bool Counters::on_global(std::uintptr_t address, std::size_t bytes, bool write, Site site) {
  if (address % bytes != 0) {
    fail(place(site) + ": misaligned access of " + std::to_string(bytes) + " bytes");
    return false;
  }
  if (detailed) remember(global_log_, address, bytes, site);
  for (Buffer& buffer : buffers) {
    if (address < buffer.base || address + bytes > buffer.base + buffer.bytes) continue;
    if (write && !buffer.writable) {
      fail(place(site) + ": write to the input " + buffer.name);
      return false;
    }
    (write ? buffer.written : buffer.read) += bytes;
    return true;
  }
  if (buffers.empty()) return true;
  fail(place(site) + (write ? ": write" : ": read") + " outside every known buffer");
  return false;
}

bool Counters::on_shared(std::size_t offset, std::size_t bytes, bool write, Site site) {
  if (offset % bytes != 0 || offset + bytes > shared_size()) {
    fail(place(site) + ": shared memory access outside the block's allocation, or misaligned");
    return false;
  }
  if (detailed) remember(shared_log_, offset, bytes, site);
  for (std::size_t word = offset / 4; check_races && word < (offset + bytes + 3) / 4; ++word) race(word, write, site);
  return true;
}

void Counters::race(std::size_t index, bool write, Site site) {
  Word& word = words_[index];
  const Thread& self = thread();
  const auto unordered = [&](int other, unsigned when, unsigned sync) {
    if (other == -1 || other == self.index || when != epoch()) return false;
    return other == -2 || other / 32 != self.warp() || sync >= self.syncs;
  };
  if (unordered(word.writer, word.written, word.write_sync) || (write && unordered(word.reader, word.read, word.read_sync)))
    fail(place(site) + ": race on shared memory: no barrier between two threads' accesses");
  if (write) {
    word.writer = self.index;
    word.written = epoch();
    word.write_sync = self.syncs;
  } else {
    const bool others = word.reader != -1 && word.reader != self.index && word.read == epoch();
    word.reader = others ? -2 : self.index;
    word.read = epoch();
    word.read_sync = self.syncs;
  }
}

void Counters::end_block() {
  words_.assign(words_.size(), Word());
  if (!detailed) return;
  for (const auto& [instruction, accesses] : global_log_) {
    std::set<std::uintptr_t> sectors, bytes;
    for (const Access& access : accesses)
      for (std::size_t byte = 0; byte < access.bytes; ++byte) {
        bytes.insert(access.address + byte);
        sectors.insert((access.address + byte) / 32);
      }
    Cost& cost = global[std::get<1>(instruction)];
    ++cost.instructions;
    cost.units += sectors.size();
    cost.fewest += (bytes.size() + 31) / 32;
  }
  for (const auto& [instruction, accesses] : shared_log_) {
    // 32 banks of 4 bytes; 8- and 16-byte accesses go by half and quarter warps.
    Cost& cost = shared[std::get<1>(instruction)];
    ++cost.instructions;
    const std::size_t lanes = 128 / std::max<std::size_t>(4, accesses.front().bytes);
    for (std::size_t first = 0; first < 32; first += lanes) {
      std::map<std::size_t, std::set<std::size_t>> banks;
      for (const Access& access : accesses) {
        if (access.lane < static_cast<int>(first) || access.lane >= static_cast<int>(first + lanes)) continue;
        for (std::size_t word = access.address / 4; word < (access.address + access.bytes + 3) / 4; ++word)
          banks[word % 32].insert(word);
      }
      std::size_t passes = 0;
      for (const auto& bank : banks) passes = std::max(passes, bank.second.size());
      cost.units += passes;
      cost.fewest += passes > 0;
    }
  }
  global_log_.clear();
  shared_log_.clear();
  visits_.clear();
}

std::string Counters::json() const {
  std::ostringstream out;
  out << "{\"launches\": " << launches << ", \"buffers\": {";
  const char* comma = "";
  for (const Buffer& buffer : buffers) {
    out << comma << '"' << buffer.name << "\": {\"bytes\": " << buffer.bytes << ", \"read\": " << buffer.read
        << ", \"written\": " << buffer.written << '}';
    comma = ", ";
  }
  out << '}';
  for (const auto& [title, costs] : {std::pair("global", &global), std::pair("shared", &shared)}) {
    out << ", \"" << title << "\": {";
    comma = "";
    for (const auto& [site, cost] : *costs) {
      out << comma << '"' << place(site) << "\": {\"instructions\": " << cost.instructions << ", \"units\": " << cost.units
          << ", \"fewest\": " << cost.fewest << '}';
      comma = ", ";
    }
    out << '}';
  }
  out << '}';
  return out.str();
}

void Counters::clear() {
  launches = 0;
  buffers.clear();
  global.clear();
  shared.clear();
}

}  // namespace shim
