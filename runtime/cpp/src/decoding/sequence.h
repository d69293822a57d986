// One sequence that is being decoded: its tokens, and when it ends. Knows no graph.
#pragma once

#include <cstdint>
#include <optional>

#include "bundle.h"
#include "decoding/stats.h"
#include "decoding/tree.h"
#include "jakiro/jakiro.h"
#include "token.h"

namespace jakiro::runtime {

// Something new: the tokens of one round. The last chunk of an answer says why it ended.
struct GenerationChunk {
  Tokens tokens;
  jakiro_finish_reason finish_reason = JAKIRO_FINISH_NONE;
};

// Tokens that a sequence gained, and what to count of the round that brought them; no counts for the prompt's pass.
struct Gain {
  Tokens tokens;
  std::optional<RoundCounts> counts;
};

// The state of one answer.
class TokenSequence {
 public:
  // Throws UsageError where the prompt is empty, holds a number that is no token, or does not fit the context.
  TokenSequence(const Bundle& bundle, Tokens prompt, int64_t max_new_tokens);
  TokenSequence(const TokenSequence&) = delete;
  TokenSequence& operator=(const TokenSequence&) = delete;

  const Tokens& tokens() const { return tokens_; }  // prompt and answer so far

  // Append the tokens of a round, up to the one that ends the answer.
  GenerationChunk take(const Gain& gain);

  Stats stats;

 private:
  jakiro_finish_reason end_after(Token token) const;

  const Model& model_;
  Tokens tokens_;
  const int64_t limit_, room_;
};

}  // namespace jakiro::runtime
