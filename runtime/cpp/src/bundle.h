// What is open and never changes: the manifest and both graphs. Knows nothing above it.
#pragma once

#include <filesystem>
#include <memory>

#include "backends/backend.h"
#include "backends/onnxruntime.h"
#include "format/manifest.h"

namespace jakiro::runtime {

// An opened engine directory. Holds the weights; what decodes with it holds the state, and may share it.
struct Bundle {
  Manifest manifest;
  std::shared_ptr<const Graph> target, draft;

  // Throws UsageError where there is no engine; EngineError where a file is missing, changed, or of a newer schema, or where
  // ONNX Runtime is not found or refuses a graph.
  static std::shared_ptr<const Bundle> open(const std::filesystem::path& directory, const BackendOptions& options);
};

}  // namespace jakiro::runtime
