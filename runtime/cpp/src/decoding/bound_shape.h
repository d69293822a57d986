// A graph bound for one shape: the buffers it reads and writes, allocated once and never copied.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "backends/backend.h"
#include "contract.h"
#include "decoding/kv_cache.h"

namespace jakiro::runtime {

using Buffers = std::map<std::string, Buffer>;

class BoundShape {
 public:
  // name: of the features, an output of the target and an input of the draft
  // features: [1, 1, 1, rows, width]
  // reads_features: whether the graph reads them (the draft) or writes them (the target)
  BoundShape(const Graph& graph, const KVCache& cache, Buffers inputs, Buffers outputs, const std::string& name, Buffer features,
             bool reads_features);

  // Run the graph; the seconds it took. Throws EngineError where the backend fails.
  double run();

  int64_t* input(const char* name) { return inputs_.at(name).as<int64_t>(); }
  uint8_t* mask() { return inputs_.at("tree_mask").as<uint8_t>(); }
  const Buffer& output(const char* name) const { return outputs_.at(name); }
  bool has_output(const char* name) const { return outputs_.count(name) != 0; }
  const Buffer& features() const { return features_; }
  const Scratch& scratch() const { return scratch_; }

 private:
  Buffers inputs_, outputs_;
  Buffer features_;
  Scratch scratch_;
  std::unique_ptr<Binding> binding_;
};

// Zeros for the inputs of a contract that are neither caches nor features, [1, ...] as `rows` and `selected` make them.
Buffers input_buffers(const GraphContract& contract, const Graph& graph, int64_t rows, int64_t selected);

}  // namespace jakiro::runtime
