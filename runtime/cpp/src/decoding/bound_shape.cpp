#include "decoding/bound_shape.h"

#include <chrono>

#include "errors.h"
#include "format/manifest.h"

namespace jakiro::runtime {
namespace {

void add(Views& views, const Buffers& buffers) {
  for (const auto& [name, buffer] : buffers) views.emplace(name, buffer.view());
}

}  // namespace

BoundShape::BoundShape(const Graph& graph, const KVCache& cache, Buffers inputs, Buffers outputs, const std::string& name,
                       Buffer features, bool reads_features)
    : inputs_(std::move(inputs)),
      outputs_(std::move(outputs)),
      features_(std::move(features)),
      scratch_(cache.scratch(features_.shape()[3])) {
  Views read = cache.inputs(), written = scratch_.outputs;
  add(read, inputs_);
  add(written, outputs_);
  View hidden = features_.view();
  hidden.shape = {1, features_.shape()[3], features_.shape()[4]};
  (reads_features ? read : written).emplace(name, hidden);
  try {
    binding_ = graph.bind(read, written);
  } catch (const EngineError& error) {
    throw EngineError(std::string("The engine's graph cannot be bound: ") + error.what() + "; " + kExportAgain + ".");
  }
}

double BoundShape::run() {
  const auto started = std::chrono::steady_clock::now();
  try {
    binding_->run();
  } catch (const EngineError& error) {
    throw EngineError(std::string("The engine's graph failed: ") + error.what() +
                      "; there may be too little memory, or the engine is damaged: try a shorter prompt, or export it again.");
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

Buffers input_buffers(const GraphContract& contract, const Graph& graph, int64_t rows, int64_t selected) {
  Buffers buffers;
  for (const TensorSpec& spec : contract.inputs) {
    if (spec.is_cache() || spec.name == contract.features().name) continue;
    buffers.emplace(spec.name, Buffer(graph.inputs().at(spec.name).type, spec.shape(rows, selected)));
  }
  return buffers;
}

}  // namespace jakiro::runtime
