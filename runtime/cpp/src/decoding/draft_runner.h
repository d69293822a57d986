// Draft runner: the draft phase of a head, with its cache and the features that wait for it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "decoding/bound_shape.h"
#include "decoding/kv_cache.h"
#include "format/manifest.h"
#include "token.h"

namespace jakiro::runtime {

// The drafted tree, [nodes] each.
struct DraftOutput {
  Tokens tokens;
  Rows parents;
  std::vector<float> scores;  // cumulative log-probabilities; none is NaN
};

// The draft phase over the rows that were just accepted.
class DraftRunner {
 public:
  // feature_type: of the target's features. Throws EngineError where the draft takes another type.
  DraftRunner(std::shared_ptr<const Graph> graph, const Manifest& manifest, ElementType feature_type);

  KVCache& cache() { return cache_; }
  double seconds() const { return seconds_; }  // spent in the graph so far

  // The target's features of accepted rows that no tree was drafted after yet.
  SequenceBuffer& features() { return features_; }
  // Keep the features of these accepted rows of a target call for the next draft.
  void append_features(const Buffer& features, const Rows& rows);

  // Draft after accepted rows that continue the cache, and keep their keys and values.
  //
  // tokens: the token after each row
  // first: the row of `features` that they begin at
  // padded: rows of the bound shape, at least as many; few shapes are kept
  DraftOutput run(const Tokens& tokens, int64_t first, int64_t padded);

 private:
  BoundShape& bind(int64_t rows);
  DraftOutput checked(const BoundShape& bound) const;

  const std::shared_ptr<const Graph> graph_;
  const GraphContract contract_;
  const int64_t vocab_size_, nodes_, width_;
  KVCache cache_;
  SequenceBuffer features_;
  double seconds_ = 0;
  std::map<int64_t, BoundShape> bound_;  // by rows
};

}  // namespace jakiro::runtime
