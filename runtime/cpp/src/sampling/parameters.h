// Sampling parameters: what a token is drawn by.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "token.h"

namespace jakiro::runtime {

// A rule of the user's: (every token so far, scores [vocab], which it may change). Must depend on nothing else.
using LogitsHook = std::function<void(const Tokens& prefix, std::vector<double>& scores)>;

// The defaults are greedy.
struct Sampling {
  double temperature = 0;                // 0 takes the best token; otherwise scores are divided by it and a token is drawn
  int64_t top_k = 0;                     // draw among the k best (0: all)
  double top_p = 1;                      // draw among the fewest tokens that hold this much probability
  double min_p = 0;                      // draw among tokens at least this probable, relative to the best one
  double repetition_penalty = 1;         // scores of tokens that occurred are divided (above 0) or multiplied (below) by it
  std::map<int64_t, double> logit_bias;  // added to the scores of some tokens; -1e9 forbids one
  int64_t min_new_tokens = 0;            // no end of sequence before the answer has this many tokens
  std::optional<int64_t> logprobs;       // report the log-probability of each token and of this many best ones
  uint64_t seed = 0;
  LogitsHook hook;  // applied before temperature

  // Throws UsageError where a value is out of its range; vocab_size: tokens that logit_bias may name
  void check(int64_t vocab_size) const;
};

}  // namespace jakiro::runtime
