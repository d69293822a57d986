// Statistics of one answer: counts and times.
#pragma once

#include <cstdint>
#include <vector>

namespace jakiro::runtime {

// What to count of a round. from_head: accepted nodes that the head drafted, the others are n-grams'.
struct RoundCounts {
  int64_t verified = 0;
  bool drafted = false;
  int64_t from_head = 0;
};

// Counts and times of one answer; times in seconds.
struct Stats {
  int64_t prompt_tokens = 0, reused_tokens = 0, new_tokens = 0;
  int64_t rounds = 0;             // target passes after the prompt
  int64_t drafts = 0;             // rounds that drafted a tree
  int64_t verified = 0;           // tree nodes that the target verified, over all rounds
  int64_t from_ngrams = 0;        // tokens of the answer that n-grams proposed and the head had not drafted
  std::vector<int64_t> accepted;  // how many rounds brought at least n tokens of a tree into the answer, for n = 1, 2, ...
  double prefill = 0, first_token = 0, draft = 0, target = 0;
  double host = 0;  // everything outside the two graph calls, after the prompt

  // Count a round that brought `taken` tokens of its tree into the answer; what an answer's end cut off is none.
  void count_round(int64_t taken, const RoundCounts& counts) {
    ++rounds;
    drafts += counts.drafted ? 1 : 0;
    verified += counts.verified;
    from_ngrams += taken > counts.from_head ? taken - counts.from_head : 0;
    if (static_cast<int64_t>(accepted.size()) < taken) accepted.resize(static_cast<size_t>(taken), 0);
    for (int64_t level = 0; level < taken; ++level) ++accepted[level];
  }
};

}  // namespace jakiro::runtime
