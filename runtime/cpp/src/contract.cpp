#include "contract.h"

#include <algorithm>
#include <stdexcept>

namespace jakiro::runtime {
namespace {

bool is_of(ElementType type, Kind kind) {
  switch (kind) {
    case Kind::kInt64:
      return type == ElementType::kInt64;
    case Kind::kBool:
      return type == ElementType::kBool;
    default:
      return type != ElementType::kInt64 && type != ElementType::kBool;
  }
}

// Whether axes of these lengths, -1 for one that varies, may be the tensor's.
bool takes(const TensorSpec& spec, const Shape& lengths) {
  return lengths.size() == spec.dims.size() &&
         std::equal(lengths.begin(), lengths.end(), spec.dims.begin(),
                    [](int64_t length, int64_t dim) { return dim < 0 || length < 0 || length == dim; });
}

std::string axis_name(int64_t axis) {
  return axis == kBatch ? "batch" : axis == kRows ? "rows" : axis == kCapacity ? "capacity" : "selected";
}

// Lengths and axes, each axis by its name or as `varying`.
std::string in_words(const Shape& dims, const char* varying = nullptr) {
  std::string text;
  for (const int64_t dim : dims) {
    text += (text.empty() ? "" : ", ") + (dim >= 0 ? std::to_string(dim) : varying != nullptr ? varying : axis_name(dim));
  }
  return "[" + text + "]";
}

const char* in_words(Kind kind) { return kind == Kind::kInt64 ? "int64" : kind == Kind::kBool ? "bool" : "float"; }

std::optional<std::string> difference_of(const std::vector<TensorSpec>& specs, const Tensors& found, const std::string& verb) {
  for (const auto& [name, info] : found) {
    if (std::none_of(specs.begin(), specs.end(), [name = name](const TensorSpec& spec) { return spec.name == name; })) {
      return "it " + verb + " " + name + ", which is not expected";
    }
  }
  for (const TensorSpec& spec : specs) {
    const auto info = found.find(spec.name);
    if (info == found.end()) return "it " + verb + " no " + spec.name;
    if (!is_of(info->second.type, spec.kind)) {
      return "its " + spec.name + " is " + name_of(info->second.type) + ", and " + in_words(spec.kind) + " is expected";
    }
    if (!takes(spec, info->second.dims)) {
      return "its " + spec.name + " is " + in_words(info->second.dims, "?") + ", and " + in_words(spec.dims) + " is expected";
    }
  }
  return {};
}

constexpr const char* kHidden = "hidden_states";
constexpr const char* kAuxiliary = "aux_hidden_states";

TensorSpec features_of(int64_t hidden, int64_t layers) {
  return {layers ? kAuxiliary : kHidden, {kBatch, kRows, layers ? layers * hidden : hidden}, Kind::kFloat};
}

// Inputs for the caches of every layer, and outputs for their new rows.
void add_caches(GraphContract& contract, int64_t layers, int64_t kv_heads, int64_t head_dim, bool numbered) {
  for (const char* part : {"key", "value"}) {
    for (int64_t layer = 0; layer < layers; ++layer) {
      const std::string name = std::string("past_") + part + (numbered ? "." + std::to_string(layer) : "");
      contract.inputs.push_back({name, {kBatch, kv_heads, kCapacity, head_dim}, Kind::kFloat});
      contract.outputs.push_back({new_rows_of(name), {kBatch, kv_heads, kRows, head_dim}, Kind::kFloat});
    }
  }
}

}  // namespace

Shape TensorSpec::shape(int64_t rows, int64_t selected) const {
  Shape shape = dims;
  for (int64_t& dim : shape) {
    if (dim < 0) dim = dim == kRows ? rows : dim == kSelected ? selected : 1;
  }
  return shape;
}

bool TensorSpec::is_cache() const { return std::find(dims.begin(), dims.end(), int64_t{kCapacity}) != dims.end(); }

const TensorSpec& GraphContract::output(const std::string& wanted) const {
  return *std::find_if(outputs.begin(), outputs.end(), [&](const TensorSpec& spec) { return spec.name == wanted; });
}

std::optional<std::string> GraphContract::difference(const Graph& graph) const {
  if (auto found = difference_of(inputs, graph.inputs(), "takes")) return found;
  return difference_of(outputs, graph.outputs(), "gives");
}

const TensorSpec& GraphContract::features() const {
  for (const auto* specs : {&inputs, &outputs}) {
    for (const TensorSpec& spec : *specs) {
      if (spec.name == kHidden || spec.name == kAuxiliary) return spec;
    }
  }
  throw std::logic_error("A contract has features.");
}

std::vector<std::pair<std::string, std::string>> GraphContract::cache_names() const {
  std::vector<std::string> found;
  for (const TensorSpec& spec : inputs) {
    if (spec.is_cache()) found.push_back(spec.name);
  }
  std::vector<std::pair<std::string, std::string>> names;
  for (size_t layer = 0; layer < found.size() / 2; ++layer) names.emplace_back(found[layer], found[found.size() / 2 + layer]);
  return names;
}

GraphContract target_contract(int64_t layers, int64_t kv_heads, int64_t head_dim, int64_t hidden, int64_t vocab,
                              int64_t feature_layers) {
  GraphContract contract{kTarget,
                         {{"input_ids", {kBatch, kRows}, Kind::kInt64},
                          {"position_ids", {kBatch, kRows}, Kind::kInt64},
                          {"tree_mask", {kBatch, kRows, kRows}, Kind::kBool},
                          {"past_length", {kBatch}, Kind::kInt64},
                          {"logit_rows", {kBatch, kSelected}, Kind::kInt64}},
                         {{"logits", {kBatch, kSelected, vocab}, Kind::kFloat},
                          {"next_tokens", {kBatch, kSelected}, Kind::kInt64},
                          features_of(hidden, feature_layers)}};
  add_caches(contract, layers, kv_heads, head_dim, true);
  return contract;
}

GraphContract draft_contract(int64_t kv_heads, int64_t head_dim, int64_t hidden, int64_t nodes, int64_t feature_layers,
                             int64_t layers) {
  GraphContract contract{kDraft,
                         {{"input_ids", {kBatch, kRows}, Kind::kInt64},
                          features_of(hidden, feature_layers),
                          {"position_ids", {kBatch, kRows}, Kind::kInt64},
                          {"last_row", {kBatch}, Kind::kInt64},
                          {"past_length", {kBatch}, Kind::kInt64}},
                         {{"tree_tokens", {kBatch, nodes}, Kind::kInt64},
                          {"tree_parents", {kBatch, nodes}, Kind::kInt64},
                          {"tree_scores", {kBatch, nodes}, Kind::kFloat}}};
  add_caches(contract, layers, kv_heads, head_dim, layers > 1);
  return contract;
}

std::string new_rows_of(const std::string& cache) { return "new_" + cache.substr(5); }

}  // namespace jakiro::runtime
