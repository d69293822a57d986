#include "format/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace jakiro::runtime {
namespace {

class Descriptor {
 public:
  explicit Descriptor(const std::filesystem::path& path) : number(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (number < 0) throw FileError(path.string() + ": " + std::generic_category().message(errno), errno == ENOENT);
  }
  ~Descriptor() { close(number); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  const int number;
};

}  // namespace

std::string read_file(const std::filesystem::path& path, uint64_t most) {
  const Descriptor file(path);
  struct stat status{};
  if (fstat(file.number, &status) != 0) throw FileError(path.string() + ": " + std::generic_category().message(errno), false);
  if (!S_ISREG(status.st_mode)) throw FileError(path.string() + " is no regular file", false);
  const auto bytes = static_cast<uint64_t>(status.st_size);
  if (bytes > most) {
    throw FileError(
        path.string() + " has " + std::to_string(bytes) + " bytes, more than the " + std::to_string(most) + " that are read",
        false);
  }
  std::string text(bytes, '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = read(file.number, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw FileError(path.string() + ": " + std::generic_category().message(errno), false);
    if (count == 0) break;  // it became shorter meanwhile
    done += static_cast<size_t>(count);
  }
  text.resize(done);
  return text;
}

}  // namespace jakiro::runtime
