// Small files that somebody else may have written, read with a bound on their size.
#pragma once

#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>

namespace jakiro::runtime {

// A file that cannot be read: the message says why, and names it.
struct FileError : std::runtime_error {
  FileError(const std::string& reason, bool missing) : std::runtime_error(reason), missing(missing) {}
  const bool missing;
};

// The bytes of a regular file of at most `most` bytes. Throws FileError where there is none, where it is no regular file (a
// device or a pipe would never end), or where it is larger.
std::string read_file(const std::filesystem::path& path, uint64_t most);

}  // namespace jakiro::runtime
