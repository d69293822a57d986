// Proposers: the trees that a round verifies, from the draft head and from n-grams of the text.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "bundle.h"
#include "decoding/draft_runner.h"
#include "decoding/ngram.h"
#include "decoding/node_budget.h"
#include "decoding/sequence.h"
#include "decoding/stats.h"
#include "decoding/tree.h"

namespace jakiro::runtime {

// Where trees come from.
class Proposer {
 public:
  virtual ~Proposer() = default;

  // The head, with its share of the sequence's state; nullptr without one.
  virtual DraftRunner* draft() = 0;
  // Numbers of rows that a verification is padded to, ascending.
  virtual const std::vector<int64_t>& row_counts() const = 0;
  // An answer begins; the sequence's tokens are its prompt, and it outlives the answer.
  virtual void start(const TokenSequence& sequence) = 0;
  // capacity: slots of the target's cache, which its attention runs over
  virtual DraftTree propose(const TokenSequence& sequence, int64_t capacity) = 0;
  // These rows of a target call were accepted; features [1, 1, 1, rows, hidden].
  virtual void extend(const Buffer& features, const Rows& rows) = 0;
  // Learn what became of the tree of the last `propose`; what to count of the round.
  virtual RoundCounts observe(const DraftTree& tree, const AcceptedPath& accepted, int64_t capacity) = 0;
};

// Decoding with the target alone: the same loop with empty trees.
class NoProposer : public Proposer {
 public:
  DraftRunner* draft() override { return nullptr; }
  const std::vector<int64_t>& row_counts() const override { return row_counts_; }
  void start(const TokenSequence&) override {}
  DraftTree propose(const TokenSequence&, int64_t) override { return {}; }
  void extend(const Buffer&, const Rows&) override {}
  RoundCounts observe(const DraftTree&, const AcceptedPath&, int64_t) override { return {}; }

 private:
  const std::vector<int64_t> row_counts_{1};
};

// Trees of the draft head and of n-grams, merged and cut to the nodes that are worth their rows.
class TreeProposer : public Proposer {
 public:
  // feature_type: of the target's features
  // chunk: rows of a prompt that are drafted after in one call
  // nodes: verify only the best of every tree, no more than the engine drafts; 0 verifies as many as are worth their rows where
  //   the engine was exported with --tree auto, and all of them elsewhere
  // ngrams: propose what followed the last tokens where they stood before, too
  TreeProposer(const Bundle& bundle, ElementType feature_type, int64_t chunk, int64_t nodes, bool ngrams);

  DraftRunner* draft() override { return &draft_; }
  const std::vector<int64_t>& row_counts() const override { return budget_->row_counts(); }
  void start(const TokenSequence& sequence) override;
  DraftTree propose(const TokenSequence& sequence, int64_t capacity) override;
  void extend(const Buffer& features, const Rows& rows) override;
  RoundCounts observe(const DraftTree& tree, const AcceptedPath& accepted, int64_t capacity) override;

 private:
  Proposal ngram_chain(int64_t capacity);
  bool should_draft(const Proposal& chain);
  DraftOutput draft_tree(const TokenSequence& sequence);
  DraftTree cut(DraftOutput draft, const Proposal& chain, int64_t capacity);

  DraftRunner draft_;
  const std::unique_ptr<Budget> budget_;
  const int64_t chunk_;
  const bool use_ngrams_;
  std::vector<int64_t> widths_;  // of the draft's bound shapes, ascending
  std::optional<NGramProposer> ngrams_;
  Proposal chain_;
  bool drafted_ = false;
};

// A half-open range of tokens.
struct Span {
  int64_t start, stop;
};

// Cut `length` tokens into calls of at most `width` rows, aligned at their end.
std::vector<Span> call_spans(int64_t length, int64_t width);

}  // namespace jakiro::runtime
