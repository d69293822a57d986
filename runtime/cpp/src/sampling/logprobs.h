// Log-probabilities of drawn tokens and of the best alternatives.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "token.h"

namespace jakiro::runtime {

// Natural log-probability of a drawn token under the target, before any rule; and of the best alternatives.
struct TokenLogprob {
  Token token;
  double logprob;
  std::vector<std::pair<Token, double>> top;
};

// Of one token and of the `count` best ones; logits [vocab].
TokenLogprob token_logprob(std::vector<double> logits, Token token, int64_t count);

}  // namespace jakiro::runtime
