// The runtime's own CPU kernels for ONNX Runtime: libraries next to this one, a form for each set of instructions.
//
// They replace the bodies of operators that an int8 or int4 engine is written with. Without them (no AVX2, or JAKIRO_KERNELS=0)
// ONNX Runtime runs those bodies: the same results, several times slower. Their sources are those of the Python runtime.
#pragma once

#include <filesystem>

#include "ort_abi.h"

namespace jakiro::runtime {

// Whether an ONNX file has operators that a kernel can replace. Throws EngineError where it cannot be read.
bool kernels_needed(const std::filesystem::path& graph);

// Add the kernels for this CPU to a session, if there are any; what ONNX Runtime said, nullptr where it took them.
ort::Status* register_kernels(ort::SessionOptions* options, const ort::ApiBase* base);

}  // namespace jakiro::runtime
