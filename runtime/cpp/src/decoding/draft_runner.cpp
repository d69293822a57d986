#include "decoding/draft_runner.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "errors.h"

namespace jakiro::runtime {
namespace {

Rows consecutive(int64_t first, size_t count) {
  Rows rows(count);
  std::iota(rows.begin(), rows.end(), first);
  return rows;
}

}  // namespace

DraftRunner::DraftRunner(std::shared_ptr<const Graph> graph, const Manifest& manifest, ElementType feature_type)
    : graph_(std::move(graph)),
      contract_(manifest.draft_contract()),
      vocab_size_(manifest.model.vocab_size),
      nodes_(manifest.draft.nodes),
      width_(contract_.features().dims.back()),
      cache_(contract_.cache_names(), manifest.draft.num_kv_heads, manifest.draft.head_dim,
             graph_->inputs().at(contract_.cache_names()[0].first).type,
             graph_->inputs().at(contract_.cache_names()[0].second).type),
      features_(1, 1, width_, {graph_->inputs().at(contract_.features().name).type}) {
  const ElementType taken = graph_->inputs().at(contract_.features().name).type;
  if (taken != feature_type) {
    throw EngineError(std::string("This engine's target gives its features in ") + name_of(feature_type) +
                      " and the draft takes " + name_of(taken) + "; export both with one --precision.");
  }
  if (graph_->outputs().at("tree_scores").type != ElementType::kFloat32) {
    throw EngineError(std::string("The engine's draft gives its scores in another type than float32; ") + kExportAgain + ".");
  }
}

BoundShape& DraftRunner::bind(int64_t rows) {
  const auto found = bound_.find(rows);
  if (found != bound_.end()) return found->second;
  Buffers outputs;
  for (const char* name : {"tree_tokens", "tree_parents", "tree_scores"}) {
    outputs.emplace(name, Buffer(graph_->outputs().at(name).type, contract_.output(name).shape(rows, 0)));
  }
  Buffer features(features_.arrays()[0].type(), {1, 1, 1, rows, width_});
  return bound_
      .emplace(std::piecewise_construct, std::forward_as_tuple(rows),
               std::forward_as_tuple(*graph_, cache_, input_buffers(contract_, *graph_, rows, 0), std::move(outputs),
                                     contract_.features().name, std::move(features), true))
      .first->second;
}

void DraftRunner::append_features(const Buffer& features, const Rows& rows) {
  features_.reserve(features_.length() + static_cast<int64_t>(rows.size()));
  features_.append({&features}, rows);
}

DraftOutput DraftRunner::run(const Tokens& tokens, int64_t first, int64_t padded) {
  const int64_t length = cache_.length();
  if (cache_.reserve(length + padded)) bound_.clear();
  BoundShape& bound = bind(padded);
  std::copy(tokens.begin(), tokens.end(), bound.input("input_ids"));
  *bound.input("last_row") = std::max<int64_t>(0, static_cast<int64_t>(tokens.size()) - 1);
  std::iota(bound.input("position_ids"), bound.input("position_ids") + padded, length);
  *bound.input("past_length") = length;
  append_rows(features_.arrays()[0], bound.features(), consecutive(first, tokens.size()), 0);
  seconds_ += bound.run();
  cache_.commit(bound.scratch(), consecutive(0, tokens.size()));
  return checked(bound);
}

// A damaged or hostile graph may give anything.
DraftOutput DraftRunner::checked(const BoundShape& bound) const {
  const int64_t* const tokens = bound.output("tree_tokens").as<int64_t>();
  const int64_t* const parents = bound.output("tree_parents").as<int64_t>();
  const float* const scores = bound.output("tree_scores").as<float>();
  DraftOutput output{{}, Rows(parents, parents + nodes_), std::vector<float>(scores, scores + nodes_)};
  const bool known = std::all_of(tokens, tokens + nodes_, [&](int64_t token) { return token >= 0 && token < vocab_size_; });
  if (!known || !is_tree(output.parents)) {
    throw EngineError(std::string("The engine's draft gives no tree of its tokens; ") + kExportAgain + ".");
  }
  output.tokens.assign(tokens, tokens + nodes_);
  std::replace_if(
      output.scores.begin(), output.scores.end(), [](float score) { return std::isnan(score); },
      -std::numeric_limits<float>::infinity());
  return output;
}

}  // namespace jakiro::runtime
