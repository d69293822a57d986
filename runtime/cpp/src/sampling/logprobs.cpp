#include "sampling/logprobs.h"

#include <algorithm>
#include <cmath>

#include "sampling/sums.h"
#include "sampling/warping.h"

namespace jakiro::runtime {

TokenLogprob token_logprob(std::vector<double> scores, Token token, int64_t count) {
  const double top = *std::max_element(scores.begin(), scores.end());
  std::vector<double> weights;
  for (double& score : scores) weights.push_back(std::exp(score -= top));
  const double whole = std::log(pairwise_sum(weights.data(), weights.size()));
  for (double& score : scores) score -= whole;
  TokenLogprob found{token, scores[token], {}};
  if (count == 0) return found;
  const size_t best = std::min(static_cast<size_t>(count), scores.size());
  const double least = nth_largest(scores, best);
  for (size_t each = 0; each < scores.size(); ++each) {
    if (scores[each] >= least) found.top.emplace_back(static_cast<Token>(each), scores[each]);
  }
  std::stable_sort(found.top.begin(), found.top.end(),
                   [](const auto& one, const auto& other) { return one.second > other.second; });
  found.top.resize(std::min(best, found.top.size()));
  return found;
}

}  // namespace jakiro::runtime
