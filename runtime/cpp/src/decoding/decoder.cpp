#include "decoding/decoder.h"

#include <algorithm>
#include <numeric>

namespace jakiro::runtime {
namespace {

std::unique_ptr<Proposer> make_proposer(const Bundle& bundle, ElementType feature_type, const DecoderOptions& options) {
  if (!options.speculate) return std::make_unique<NoProposer>();
  return std::make_unique<TreeProposer>(bundle, feature_type, options.chunk, options.nodes, options.ngrams);
}

// How many tokens two sequences begin with alike.
int64_t shared_prefix(const Tokens& one, const Tokens& other) {
  const auto end = one.begin() + static_cast<int64_t>(std::min(one.size(), other.size()));
  return std::mismatch(one.begin(), end, other.begin()).first - one.begin();
}

// The logits after one row of a pass.
std::vector<double> row_of(const Buffer& logits, int64_t row, int64_t vocab_size) {
  std::vector<double> found(static_cast<size_t>(vocab_size));
  for (int64_t token = 0; token < vocab_size; ++token) found[token] = logits.number(row * vocab_size + token);
  return found;
}

}  // namespace

Decoder::Decoder(const Bundle& bundle, const DecoderOptions& options)
    : target_(bundle.target, bundle.manifest),
      proposer_(make_proposer(bundle, target_.feature_type(), options)),
      chunk_(options.chunk),
      vocab_size_(bundle.manifest.model.vocab_size) {}

Gain Decoder::prefill(TokenSequence& sequence, const std::function<bool()>& cancelled) {
  proposer_->start(sequence);
  const Tokens waiting(sequence.tokens().begin() + target_.cache().length(), sequence.tokens().end());
  const auto spans = call_spans(static_cast<int64_t>(waiting.size()), chunk_);
  for (size_t call = 0; call < spans.size(); ++call) {
    if (cancelled()) return {};
    const Tokens tokens(waiting.begin() + spans[call].start, waiting.begin() + spans[call].stop);
    const bool is_last = call + 1 == spans.size();
    const TargetOutput output = prefill_chunk(tokens, is_last && sequence.needs_logits());
    if (is_last) return {{next_token(sequence, output)(0, {})}, {}};
  }
  return {};
}

TargetOutput Decoder::prefill_chunk(const Tokens& tokens, bool logits) {
  const size_t rows = tokens.size();
  Rows all(rows);
  std::iota(all.begin(), all.end(), 0);
  std::vector<uint8_t> causal(rows * rows, 0);
  for (size_t row = 0; row < rows; ++row) std::fill_n(causal.begin() + static_cast<int64_t>(row * rows), row + 1, uint8_t{1});
  const TargetOutput output = target_.run(tokens, all, causal, logits, static_cast<int64_t>(rows) - 1);
  commit(output, all);
  return output;
}

Gain Decoder::round(TokenSequence& sequence) {
  const int64_t capacity = target_.cache().capacity();
  const DraftTree tree = proposer_->propose(sequence, capacity);  // head and n-grams, cut to what is worth its rows
  const TargetOutput output = verify(sequence, tree);             // one pass of the target over the root and the tree
  // x ~ target(. | path) after each visited row; follow the child whose token is x, else stop there. The draw does not look at
  // the tree, so that the output is the target's own, greedy or sampled, whatever was proposed.
  AcceptedPath path = accept(tree, next_token(sequence, output));
  commit(output, path.rows);  // accepted rows only; the others were never in the cache
  const RoundCounts counts = proposer_->observe(tree, path, target_.cache().capacity());
  return {std::move(path.tokens), counts};
}

TargetOutput Decoder::verify(const TokenSequence& sequence, const DraftTree& tree) {
  const auto nodes = static_cast<int64_t>(tree.tokens.size());
  const auto& counts = proposer_->row_counts();
  const int64_t rows = *std::find_if(counts.begin(), counts.end(), [&](int64_t count) { return count > nodes; });
  Tokens tokens{sequence.tokens().back()};
  tokens.insert(tokens.end(), tree.tokens.begin(), tree.tokens.end());
  tokens.resize(static_cast<size_t>(rows), 0);  // few shapes, each bound once
  const TreeMask mask = tree_mask(tree.parents, rows);
  return target_.run(tokens, mask.depths, mask.visible, sequence.needs_logits());
}

// How the sequence draws its tokens after the rows of a pass.
NextToken Decoder::next_token(TokenSequence& sequence, const TargetOutput& output) const {
  const int64_t* const best = output.next_tokens;
  const Buffer* const logits = output.logits;
  if (logits == nullptr) return [best](int64_t row, const Tokens&) { return static_cast<Token>(best[row]); };
  return [this, &sequence, best, logits](int64_t row, const Tokens& path) {
    return sequence.next_token(static_cast<Token>(best[row]), row_of(*logits, row, vocab_size_), path);
  };
}

// Keep these rows of a pass: their features to draft after, their keys and values to attend to.
void Decoder::commit(const TargetOutput& output, const Rows& rows) {
  proposer_->extend(output.features, rows);
  target_.commit(output, rows);
}

double Decoder::draft_seconds() const { return proposer_->draft() != nullptr ? proposer_->draft()->seconds() : 0.0; }

void Decoder::truncate(int64_t length) {
  target_.cache().truncate(length);
  if (proposer_->draft() != nullptr) proposer_->draft()->cache().truncate(length);
}

int64_t Decoder::reuse(const Tokens& known, const Tokens& ids) {
  int64_t cached = target_.cache().length();
  if (proposer_->draft() != nullptr) cached = std::min(cached, proposer_->draft()->cache().length());
  // a draft row needs the token after its own: the last common token's row is made again
  const int64_t shared = std::min({shared_prefix(known, ids) - 1, cached, static_cast<int64_t>(ids.size()) - 1});
  const int64_t length = std::max<int64_t>(0, shared);
  truncate(length);
  return length;
}

}  // namespace jakiro::runtime
