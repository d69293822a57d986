// One sequence that is being decoded: its tokens, and when it ends. Knows no graph.
#pragma once

#include <cstdint>
#include <optional>

#include "bundle.h"
#include "decoding/stats.h"
#include "decoding/tree.h"
#include "jakiro/jakiro.h"
#include "sampling/sampler.h"
#include "token.h"

namespace jakiro::runtime {

// Something new: the tokens of one round. The last chunk of an answer says why it ended.
struct GenerationChunk {
  Tokens tokens;
  jakiro_finish_reason finish_reason = JAKIRO_FINISH_NONE;
  std::vector<TokenLogprob> logprobs;  // of each token, where they were asked for
};

// Tokens that a sequence gained, and what to count of the round that brought them; no counts for the prompt's pass.
struct Gain {
  Tokens tokens;
  std::optional<RoundCounts> counts;
};

// What an answer is to be like.
struct GenerateOptions {
  int64_t max_new_tokens = 512;
  Sampling sampling;
};

// The state of one answer.
class TokenSequence {
 public:
  // Throws UsageError where the prompt is empty, holds a number that is no token, or does not fit the context, or where an option
  // is out of its range.
  TokenSequence(const Bundle& bundle, Tokens prompt, const GenerateOptions& options);
  TokenSequence(const TokenSequence&) = delete;
  TokenSequence& operator=(const TokenSequence&) = delete;

  const Tokens& tokens() const { return tokens_; }  // prompt and answer so far

  // Whether the best token alone is not enough to draw the next one.
  bool needs_logits() const { return sampler_.needs_logits(); }

  // The token after `path`, tokens of a tree that continue this sequence; logits [vocab]. Throws EngineError where they are not
  // numbers.
  Token next_token(Token best, const std::vector<double>& logits, const Tokens& path);

  // Append the tokens of a round, up to the one that ends the answer.
  GenerationChunk take(const Gain& gain);

  Stats stats;

 private:
  jakiro_finish_reason end_after(Token token) const;

  const Model& model_;
  Tokens tokens_;
  Sampler sampler_;
  const int64_t limit_, room_;
};

}  // namespace jakiro::runtime
