#include "decoding/proposers.h"

#include <algorithm>
#include <functional>
#include <numeric>

namespace jakiro::runtime {
namespace {

constexpr int64_t kNGramNodes = 15;  // nodes of n-grams at most, where more of them than the head drafts may be verified
constexpr int64_t kUndrafted = 32;   // rows that may wait for a draft

std::unique_ptr<Budget> make_budget(const Manifest& manifest, int64_t nodes, bool ngrams) {
  const int64_t drafted = manifest.draft.nodes;
  if (!manifest.tree || nodes != 0) return std::make_unique<FixedBudget>(std::min(nodes != 0 ? nodes : drafted, drafted));
  return std::make_unique<NodeBudget>(*manifest.tree, drafted, ngrams ? std::max(drafted, kNGramNodes) : drafted);
}

}  // namespace

TreeProposer::TreeProposer(const Bundle& bundle, ElementType feature_type, int64_t chunk, int64_t nodes, bool ngrams)
    : draft_(bundle.draft, bundle.manifest, feature_type),
      budget_(make_budget(bundle.manifest, nodes, ngrams)),
      chunk_(chunk),
      use_ngrams_(ngrams) {
  const int64_t few = bundle.manifest.draft.levels() + 1;  // rows that most rounds accept at most
  for (int step = 0; step < 5; ++step) {
    if (const int64_t width = few << step; width < chunk || step < 3) widths_.push_back(width);
  }
}

void TreeProposer::start(const TokenSequence& sequence) {
  budget_->start();
  ngrams_.reset();
  if (use_ngrams_) ngrams_.emplace(sequence.tokens());
  draft_.features().truncate(0);
}

DraftTree TreeProposer::propose(const TokenSequence& sequence, int64_t capacity) {
  chain_ = ngram_chain(capacity);
  drafted_ = should_draft(chain_);
  return cut(drafted_ ? draft_tree(sequence) : DraftOutput{}, chain_, capacity);
}

// What may come next, as far as it is worth verifying.
Proposal TreeProposer::ngram_chain(int64_t capacity) {
  if (!ngrams_) return {};
  const Proposal chain = ngrams_->propose(budget_->most());
  return chain.tokens.empty() ? chain : chain.first(budget_->count(chain.acceptance_probs, capacity));
}

// Not where the chain cannot be bettered, nor where drafts of late were not worth their time.
bool TreeProposer::should_draft(const Proposal& chain) {
  if (draft_.features().length() <= kUndrafted && chain.is_unbeatable()) return false;
  return budget_->should_draft();
}

// Draft after the tokens that were just accepted, given the features of the rows before them.
DraftOutput TreeProposer::draft_tree(const TokenSequence& sequence) {
  const auto first = sequence.tokens().begin() + draft_.cache().length() + 1;
  const Tokens after(first, first + draft_.features().length());  // each feature's next token
  const auto longest = static_cast<int64_t>(after.size());
  const auto fits = std::find_if(widths_.begin(), widths_.end(), [&](int64_t width) { return longest <= width; });
  const int64_t width = fits != widths_.end() ? *fits : chunk_;
  DraftOutput output;
  for (const Span& span : call_spans(longest, width)) {
    output = draft_.run(Tokens(after.begin() + span.start, after.begin() + span.stop), span.start, width);
  }
  draft_.features().truncate(0);
  return output;
}

// What is worth verifying of a drafted tree and a chain.
DraftTree TreeProposer::cut(DraftOutput draft, const Proposal& chain, int64_t capacity) {
  const auto drafted = static_cast<int64_t>(draft.tokens.size());
  Rows kept(static_cast<size_t>(drafted));
  std::iota(kept.begin(), kept.end(), 0);
  if (!chain.tokens.empty() || !budget_->takes_all(drafted)) {
    std::vector<double> probs = budget_->acceptance_probs(draft.scores);
    merge_chain(draft.tokens, draft.parents, probs, chain.tokens, chain.acceptance_probs);
    std::vector<double> best = probs;
    std::sort(best.begin(), best.end(), std::greater<>());
    kept = top_nodes(probs, draft.parents, budget_->count(best, capacity));
  }
  DraftTree tree = subtree(draft.tokens, draft.parents, kept);
  tree.from_head = std::lower_bound(kept.begin(), kept.end(), drafted) - kept.begin();
  return tree;
}

void TreeProposer::extend(const Buffer& features, const Rows& rows) {
  draft_.append_features(features, rows);  // where nothing was drafted, the next draft continues from these rows too
}

RoundCounts TreeProposer::observe(const DraftTree& tree, const AcceptedPath& accepted, int64_t capacity) {
  const Tokens& gained = accepted.tokens;
  const auto count = static_cast<int64_t>(gained.size()), verified = static_cast<int64_t>(tree.tokens.size());
  if (drafted_) budget_->observe_acceptance(tree.from_head, count - 1 - chain_.matches_but_last(gained), capacity);
  if (use_ngrams_) budget_->observe_throughput(verified, count, drafted_, capacity);
  const auto beyond = std::upper_bound(accepted.rows.begin(), accepted.rows.end(), tree.from_head);
  return {verified, drafted_, beyond - accepted.rows.begin() - 1};
}

std::vector<Span> call_spans(int64_t length, int64_t width) {
  std::vector<Span> spans;
  const int64_t calls = (length + width - 1) / width;
  for (int64_t call = 0; call < calls; ++call) {
    spans.push_back({std::max<int64_t>(0, length - (calls - call) * width), length - (calls - call - 1) * width});
  }
  return spans;
}

}  // namespace jakiro::runtime
