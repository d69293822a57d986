// Target runner: one verification pass of the target, with its cache and its bound buffers.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <tuple>

#include "decoding/bound_shape.h"
#include "decoding/kv_cache.h"
#include "format/manifest.h"
#include "token.h"

namespace jakiro::runtime {

// What a pass gave; valid until the next one.
struct TargetOutput {
  const int64_t* next_tokens;  // the best next token after each selected row, [selected]; each is in the vocabulary
  const Buffer* logits;        // [1, selected, vocab]; nullptr where they were not asked for
  const Buffer& features;      // what the head continues from, [1, 1, 1, rows, hidden]
  const Scratch& scratch;      // keys and values of every row
};

// The target over some rows of the sequence: prompt chunks, or the root and its tree.
//
// One row alone takes other matrix kernels than several do, so calls are padded to two rows: a row's result is then the same bit
// for bit in any call. Padding sees itself alone and is seen by nobody.
class TargetRunner {
 public:
  TargetRunner(std::shared_ptr<const Graph> graph, const Manifest& manifest);

  KVCache& cache() { return cache_; }
  double seconds() const { return seconds_; }  // spent in the graph so far
  ElementType feature_type() const { return graph_->outputs().at(contract_.features().name).type; }

  // Process rows that continue the cache.
  //
  // tokens, depths: [rows]; depths are positions relative to the cached length
  // mask: [rows, rows], who sees whom
  // logits: give the logits too
  // last: the only row after which a token is chosen; nothing: after every row
  TargetOutput run(const Tokens& tokens, const Rows& depths, const std::vector<uint8_t>& mask, bool logits,
                   std::optional<int64_t> last = {});

  // Append the keys and values of these rows of a call to the cache; the others are dropped.
  void commit(const TargetOutput& output, const Rows& rows) { cache_.commit(output.scratch, rows); }

 private:
  using Key = std::tuple<int64_t, int64_t, bool>;  // rows, selected, logits
  BoundShape& bind(int64_t rows, int64_t selected, bool logits);

  const std::shared_ptr<const Graph> graph_;
  const GraphContract contract_;
  const int64_t vocab_size_;
  KVCache cache_;
  double seconds_ = 0;
  std::list<std::pair<Key, BoundShape>> bound_;  // the last one used comes last
};

}  // namespace jakiro::runtime
