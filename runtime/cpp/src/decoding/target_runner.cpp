#include "decoding/target_runner.h"

#include <algorithm>

#include "errors.h"

namespace jakiro::runtime {
namespace {

constexpr size_t kBoundShapes = 24;  // kept for re-use, those used last

}  // namespace

TargetRunner::TargetRunner(std::shared_ptr<const Graph> graph, const Manifest& manifest)
    : graph_(std::move(graph)),
      contract_(manifest.target_contract()),
      vocab_size_(manifest.model.vocab_size),
      cache_(contract_.cache_names(), manifest.model.num_kv_heads, manifest.model.head_dim,
             graph_->inputs().at("past_key.0").type, graph_->inputs().at("past_value.0").type) {}

BoundShape& TargetRunner::bind(int64_t rows, int64_t selected, bool logits) {
  const Key key{rows, selected, logits};
  const auto found = std::find_if(bound_.begin(), bound_.end(), [&](const auto& each) { return each.first == key; });
  if (found != bound_.end()) {
    bound_.splice(bound_.end(), bound_, found);
    return bound_.back().second;
  }
  if (bound_.size() >= kBoundShapes) bound_.pop_front();
  Buffers outputs;
  for (const char* name : {"next_tokens", "logits"}) {
    if (name == std::string("logits") && !logits) continue;
    outputs.emplace(name, Buffer(graph_->outputs().at(name).type, contract_.output(name).shape(rows, selected)));
  }
  const TensorSpec& given = contract_.features();
  bound_.emplace_back(
      std::piecewise_construct, std::forward_as_tuple(key),
      std::forward_as_tuple(*graph_, cache_, input_buffers(contract_, *graph_, rows, selected), std::move(outputs), given.name,
                            Buffer(feature_type(), {1, 1, 1, rows, given.dims.back()}), false));
  return bound_.back().second;
}

TargetOutput TargetRunner::run(const Tokens& tokens, const Rows& depths, const std::vector<uint8_t>& mask, bool logits,
                               std::optional<int64_t> last) {
  const auto rows = static_cast<int64_t>(tokens.size());
  const int64_t padded = std::max<int64_t>(2, rows), length = cache_.length(), selected = last ? 2 : padded;
  if (cache_.reserve(length + padded)) bound_.clear();
  BoundShape& bound = bind(padded, selected, logits);
  int64_t* const input_ids = bound.input("input_ids");
  int64_t* const position_ids = bound.input("position_ids");
  uint8_t* const tree_mask = bound.mask();
  for (int64_t row = 0; row < rows; ++row) {
    input_ids[row] = tokens[row];
    position_ids[row] = depths[row] + length;
    std::copy_n(mask.data() + row * rows, rows, tree_mask + row * padded);
  }
  if (padded > rows) tree_mask[padded * padded - 1] = 1;
  *bound.input("past_length") = length;
  for (int64_t place = 0; place < selected; ++place) bound.input("logit_rows")[place] = last ? *last : place;
  seconds_ += bound.run();
  const int64_t* const best = bound.output("next_tokens").as<int64_t>();
  if (std::any_of(best, best + selected, [&](int64_t token) { return token < 0 || token >= vocab_size_; })) {
    throw EngineError(std::string("The engine's target gives a token outside its vocabulary; ") + kExportAgain + ".");
  }
  return {best, logits ? &bound.output("logits") : nullptr, bound.features(), bound.scratch()};
}

}  // namespace jakiro::runtime
