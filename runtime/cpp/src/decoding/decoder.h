// The decoding loop: process the prompt, then rounds of draft, verify, accept, commit.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "bundle.h"
#include "decoding/proposers.h"
#include "decoding/sequence.h"
#include "decoding/target_runner.h"
#include "decoding/tree.h"

namespace jakiro::runtime {

struct DecoderOptions {
  bool speculate = true;  // off: the target alone, in the same loop with empty trees
  int64_t chunk = 128;    // rows of a prompt that are processed in one call
  int64_t nodes = 0;      // as TreeProposer takes them
  bool ngrams = true;
};

// The target, what proposes trees for it, and their caches, for one sequence.
class Decoder {
 public:
  Decoder(const Bundle& bundle, const DecoderOptions& options);

  // Process what the caches do not hold of the prompt; the first token of the answer.
  //
  // Between calls of the target `cancelled` is asked; where it says so, nothing is gained.
  Gain prefill(TokenSequence& sequence, const std::function<bool()>& cancelled);

  // One round: the tokens of the tree that the target agrees with, and one more.
  Gain round(TokenSequence& sequence);

  double draft_seconds() const;  // spent in the draft graph so far
  double target_seconds() const { return target_.seconds(); }

  // Forget what the caches hold from `length` on.
  void truncate(int64_t length);
  // Truncate the caches, which stand for `known`, to what a prompt shares with it; how many tokens.
  //
  // The prompt's last token is always processed, for its logits.
  int64_t reuse(const Tokens& known, const Tokens& ids);

 private:
  TargetOutput prefill_chunk(const Tokens& tokens, bool logits);
  TargetOutput verify(const TokenSequence& sequence, const DraftTree& tree);
  void commit(const TargetOutput& output, const Rows& rows);

  NextToken next_token(TokenSequence& sequence, const TargetOutput& output) const;

  TargetRunner target_;
  const std::unique_ptr<Proposer> proposer_;
  const int64_t chunk_, vocab_size_;
};

}  // namespace jakiro::runtime
