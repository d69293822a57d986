#include "kernels/kernels.h"

#include <dlfcn.h>

#include <cstdlib>
#include <string>

#include "errors.h"
#include "format/files.h"

namespace jakiro::runtime {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kLargestGraph = uint64_t{1} << 31;  // bytes of an ONNX file without its weights; protobuf holds no more

// The best form that this CPU runs; nullptr for none. kernels/prebuilt.py has the same instructions by name.
const char* form() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                  __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  return v4 ? "avx512" : v3 ? "avx2" : nullptr;
#else
  return nullptr;
#endif
}

// The folder of this library, in which `jakiro/` holds the kernels.
fs::path own_folder() {
  Dl_info found{};
  return dladdr(reinterpret_cast<const void*>(&register_kernels), &found) != 0 ? fs::path(found.dli_fname).parent_path() : "";
}

}  // namespace

bool kernels_needed(const fs::path& graph) {
  try {
    return read_file(graph, kLargestGraph).find("RowInt") != std::string::npos;
  } catch (const FileError& error) {
    throw EngineError(std::string("An engine's graph cannot be read (") + error.what() + "); export it again.");
  }
}

ort::Status* register_kernels(ort::SessionOptions* options, const ort::ApiBase* base) {
  const char* asked = std::getenv("JAKIRO_KERNELS");
  if (form() == nullptr || (asked != nullptr && std::string(asked) == "0")) return nullptr;
  const fs::path file = own_folder() / "jakiro" / (std::string("kernels-") + form() + ".so");
  // never closed: sessions use its code for as long as the process lives
  void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (library == nullptr) return nullptr;
  using Register = ort::Status*(ort::SessionOptions*, const ort::ApiBase*);
  auto* registers = reinterpret_cast<Register*>(dlsym(library, "RegisterCustomOps"));
  return registers != nullptr ? registers(options, base) : nullptr;
}

}  // namespace jakiro::runtime
