// A shared library that is loaded by path.
#pragma once

#include <memory>
#include <string>

namespace jakiro::runtime {

class SharedLibrary {
 public:
  // A path, or a bare name that the system looks for. Throws EngineError with the system's reason.
  explicit SharedLibrary(const std::string& path);

  // nullptr where it has no such symbol.
  void* symbol(const char* name) const;

 private:
  struct Close {
    void operator()(void* handle) const;
  };
  std::unique_ptr<void, Close> handle_;
};

}  // namespace jakiro::runtime
