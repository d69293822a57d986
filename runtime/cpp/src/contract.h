// Graph contract: the inputs and outputs of an engine's two graphs, by name, shape and element type (docs/graph-contract.md).
//
// Sequences are decoded one at a time here, so the batch axis is 1 in every call.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backends/backend.h"

namespace jakiro::runtime {

constexpr const char* kTarget = "target";
constexpr const char* kDraft = "draft";

// Axes whose length differs from call to call, in place of a length.
enum Axis : int64_t { kBatch = -1, kRows = -2, kCapacity = -3, kSelected = -4 };

// Element types: a float is the graph's own (float32, float16); cached values are double in bitwise float32 graphs.
enum class Kind { kInt64, kBool, kFloat };

struct TensorSpec {
  std::string name;
  std::vector<int64_t> dims;  // a length or an Axis each
  Kind kind;

  Shape shape(int64_t rows, int64_t selected) const;
  bool is_cache() const;
};

struct GraphContract {
  std::string name;
  std::vector<TensorSpec> inputs, outputs;

  const TensorSpec& output(const std::string& name) const;
  // What the target gives and the draft reads: the features of every row.
  const TensorSpec& features() const;
  // The inputs that hold cached keys and values, a pair a layer.
  std::vector<std::pair<std::string, std::string>> cache_names() const;

  // How a graph differs from this, in words; nothing where it does not.
  std::optional<std::string> difference(const Graph& graph) const;
};

// feature_layers: how many of the target's layers the head reads the inputs of, side by side; 0: the features after the final
// norm
GraphContract target_contract(int64_t layers, int64_t kv_heads, int64_t head_dim, int64_t hidden, int64_t vocab,
                              int64_t feature_layers);
// layers: of the head; the caches of a head of several are numbered
GraphContract draft_contract(int64_t kv_heads, int64_t head_dim, int64_t hidden, int64_t nodes, int64_t feature_layers,
                             int64_t layers);

// The output that holds a call's new rows for a cache input: past_key.3 -> new_key.3.
std::string new_rows_of(const std::string& cache);

}  // namespace jakiro::runtime
