// Sampler: from the target's logits to a token. Speculation takes no part in it.
//
// Every position has one pseudo-random number, a function of the seed and the position alone. A token is the inverse of the
// warped cumulative distribution at that number, so the same seed gives the same tokens with speculation on or off, on any tree.
// Rules are applied in transformers' order and with its meaning, in float64.
#pragma once

#include <cstdint>
#include <vector>

#include "sampling/logprobs.h"
#include "sampling/parameters.h"
#include "token.h"

namespace jakiro::runtime {

// Chooses the tokens of one answer, in order.
class Sampler {
 public:
  // eos: the tokens that end an answer. Throws UsageError where a setting is out of its range.
  Sampler(Sampling settings, std::vector<int64_t> eos, int64_t vocab_size);

  // Whether the best token alone is not enough to draw the next one.
  bool needs_logits() const { return needs_logits_; }

  // The next token. Called once for each token of an answer, in order.
  //
  // best: the arg max of the logits; logits: [vocab]
  // prefix: every token before it: prompt, answer so far, and the path in the tree; generated: how many belong to the answer
  // kNoToken where the rules forbid all of them. Throws EngineError where the logits are not numbers.
  Token choose(Token best, const std::vector<double>& logits, const Tokens& prefix, int64_t generated);

  // Those of the last `count` tokens that were drawn, forgetting what was drawn after them.
  std::vector<TokenLogprob> take_logprobs(size_t count);

  // Scores after every rule that comes before temperature.
  std::vector<double> scores(std::vector<double> logits, const Tokens& prefix, int64_t generated) const;

 private:
  Token draw(const std::vector<double>& logits, const Tokens& prefix, int64_t generated) const;

  const Sampling settings_;
  const std::vector<int64_t> eos_;
  bool needs_logits_, only_best_;
  std::vector<TokenLogprob> logprobs_;
};

}  // namespace jakiro::runtime
