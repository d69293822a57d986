#include "backends/shared_library.h"

#include <dlfcn.h>

#include "errors.h"

namespace jakiro::runtime {

SharedLibrary::SharedLibrary(const std::string& path) : handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
  if (handle_ == nullptr) {
    const char* reason = dlerror();
    throw EngineError(reason != nullptr ? reason : path + " cannot be loaded");
  }
}

void* SharedLibrary::symbol(const char* name) const { return dlsym(handle_.get(), name); }

void SharedLibrary::Close::operator()(void* handle) const { dlclose(handle); }

}  // namespace jakiro::runtime
