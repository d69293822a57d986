#include "decoding/ngram.h"

#include <algorithm>

namespace jakiro::runtime {
namespace {

// How often what followed a match follows again, by the length of the match from 0, before anything was counted
constexpr double kPrior[] = {0.0, 0.2, 0.5, 0.6, 0.7, 0.75, 0.8};
constexpr double kWeight = 4.0;  // tries that the prior counts for

}  // namespace

Proposal Proposal::first(int64_t count) const {
  const size_t kept = std::min(tokens.size(), static_cast<size_t>(count));
  return {Tokens(tokens.begin(), tokens.begin() + kept),
          std::vector<double>(acceptance_probs.begin(), acceptance_probs.begin() + kept)};
}

bool Proposal::is_unbeatable() const {
  double above = 1.0;
  for (const double prob : acceptance_probs) {
    if (above - prob > acceptance_probs.back()) return false;
    above = prob;
  }
  return !acceptance_probs.empty();
}

int64_t Proposal::matches_but_last(const Tokens& gained) const {
  size_t matched = 0;
  while (matched < tokens.size() && matched + 1 < gained.size() && tokens[matched] == gained[matched]) ++matched;
  return static_cast<int64_t>(matched);
}

NGramProposer::NGramProposer(const Tokens& tokens) : tokens_(tokens) {
  tries_.fill(kWeight);
  for (size_t length = 0; length <= kLongest; ++length) hits_[length] = kWeight * kPrior[length];
  index();
}

size_t NGramProposer::Hash::operator()(const Run& run) const {
  uint64_t hash = 0xCBF29CE484222325;  // FNV-1a, a token at a time
  for (const Token token : run) hash = (hash ^ static_cast<uint32_t>(token)) * 0x100000001B3;
  return hash ^ (hash >> 29);
}

NGramProposer::Run NGramProposer::run_before(const Tokens& tokens, size_t end, size_t length) {
  Run run;
  run.fill(kNoToken);
  std::copy_n(tokens.begin() + static_cast<int64_t>(end - length), length, run.begin());
  return run;
}

Proposal NGramProposer::propose(int64_t most) {
  count();
  index();
  const size_t end = tokens_.size();
  for (size_t which = 0; which < kLengths.size(); ++which) {
    const size_t length = kLengths[which];
    if (length >= end) continue;
    const auto start = after_[which].find(run_before(tokens_, end, length));
    if (start == after_[which].end()) continue;
    matched_ = length;
    last_ = continued(start->second, length, most);
    return last_;
  }
  last_ = {};
  return last_;
}

Proposal NGramProposer::continued(size_t start, size_t length, int64_t most) const {
  Proposal proposal;
  double prob = 1.0;
  for (int64_t link = 0; link < most; ++link) {
    const size_t period = tokens_.size() - start;
    proposal.tokens.push_back(tokens_[start + static_cast<size_t>(link) % period]);
    const size_t matched = std::min(length + static_cast<size_t>(link), kLongest);  // longer matches count as the longest
    prob *= hits_[matched] / tries_[matched];
    proposal.acceptance_probs.push_back(prob);
  }
  return proposal;
}

// Count how the last proposal fared: up to the first token that was another one, since nothing after it was tried.
void NGramProposer::count() {
  for (size_t link = 0; link < last_.tokens.size() && known_ + link < tokens_.size(); ++link) {
    const size_t matched = std::min(matched_ + link, kLongest);
    tries_[matched] += 1;
    if (last_.tokens[link] != tokens_[known_ + link]) return;
    hits_[matched] += 1;
  }
}

// Index which position follows which run, as far as that is new.
void NGramProposer::index() {
  for (size_t which = 0; which < kLengths.size(); ++which) {
    const size_t length = kLengths[which];
    for (size_t place = std::max(known_, length); place < tokens_.size(); ++place) {
      after_[which][run_before(tokens_, place, length)] = place;
    }
  }
  known_ = tokens_.size();
}

}  // namespace jakiro::runtime
