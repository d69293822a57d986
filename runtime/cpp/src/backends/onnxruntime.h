// ONNX Runtime on the CPU, through its C interface and I/O binding: buffers are shared, nothing is copied.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "backends/backend.h"
#include "format/manifest.h"

namespace jakiro::runtime {

struct BackendOptions {
  std::string onnxruntime;  // its library, or a folder that has it; empty: ONNXRUNTIME_ROOT, then the system's
  int threads = 0;          // 0 takes one per physical core
};

struct LoadedGraphs {
  std::shared_ptr<const Graph> target, draft;
};

// Open both graphs of an engine directory. Throws EngineError where ONNX Runtime is not found, or refuses a file.
LoadedGraphs open_graphs(const std::filesystem::path& folder, const Manifest& manifest, const BackendOptions& options);

}  // namespace jakiro::runtime
