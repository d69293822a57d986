// N-gram proposals: what followed the last few tokens where they stood before in the text (prompt lookup; Saxena, 2023).
//
// They cost a few look-ups and no graph. A wrong one costs the row that verified it, so each comes with its acceptance
// probability, as the draft's nodes do: from how many tokens match, and from how such proposals fared in this answer.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "token.h"

namespace jakiro::runtime {

// A chain of tokens that may come next, and of each the probability that it and all before it do; both empty for none.
struct Proposal {
  Tokens tokens;
  std::vector<double> acceptance_probs;

  // Its first `count` tokens.
  Proposal first(int64_t count) const;

  // Whether no other tree of as many nodes is better, whatever the head would say.
  //
  // A sibling of one of its nodes shares the position with that node: its probability is the rest at most.
  bool is_unbeatable() const;

  // How many of these tokens, from the first on, it has; the last one is not looked at.
  int64_t matches_but_last(const Tokens& gained) const;
};

// Proposals for one sequence. They depend on its tokens, and on which of them were proposed together, alone.
class NGramProposer {
 public:
  // tokens: prompt and answer; whoever owns them appends to them, and does nothing else
  explicit NGramProposer(const Tokens& tokens);

  // What may come next: the `most` tokens after the longest match, or none.
  //
  // Where the text ends in the middle of what it repeats, the chain goes round: the text may be a loop.
  Proposal propose(int64_t most);

 private:
  static constexpr std::array<size_t, 4> kLengths{6, 4, 2, 1};  // tokens of a match, longest first
  static constexpr size_t kLongest = kLengths[0];
  using Run = std::array<Token, kLongest>;  // shorter ones end with kNoToken

  struct Hash {
    size_t operator()(const Run& run) const;
  };

  static Run run_before(const Tokens& tokens, size_t end, size_t length);
  Proposal continued(size_t start, size_t length, int64_t most) const;
  void count();
  void index();

  const Tokens& tokens_;
  size_t known_ = 0;  // tokens that were indexed
  // by length: the position after each run of that many tokens, where it stood last
  std::array<std::unordered_map<Run, size_t, Hash>, kLengths.size()> after_;
  std::array<double, kLongest + 1> tries_, hits_;
  Proposal last_;
  size_t matched_ = 0;
};

}  // namespace jakiro::runtime
