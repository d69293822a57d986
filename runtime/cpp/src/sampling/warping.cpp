#include "sampling/warping.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "sampling/sums.h"

namespace jakiro::runtime {
namespace {

// Drops the tokens at which `stays` is false.
template <typename Stays>
void keep(Warped& warped, Stays stays) {
  size_t kept = 0;
  for (size_t place = 0; place < warped.tokens.size(); ++place) {
    if (!stays(place)) continue;
    warped.tokens[kept] = warped.tokens[place];
    warped.weights[kept++] = warped.weights[place];
  }
  warped.tokens.resize(kept);
  warped.weights.resize(kept);
}

// Which weights are in the fewest that hold `top_p` of the sum; of equals, the higher token first.
std::vector<bool> nucleus(const std::vector<double>& weights, double top_p) {
  const double limit = top_p * pairwise_sum(weights.data(), weights.size());
  std::vector<bool> inside(weights.size(), false);
  for (size_t head = 512;; head *= 8) {  // the nucleus is small as a rule: sort no more than it takes
    const double lowest = head < weights.size() ? nth_largest(weights, head) : -std::numeric_limits<double>::infinity();
    std::vector<size_t> order;
    for (size_t place = 0; place < weights.size(); ++place) {
      if (weights[place] >= lowest) order.push_back(place);
    }
    std::sort(order.begin(), order.end(), [&](size_t one, size_t other) {
      return weights[one] != weights[other] ? weights[one] > weights[other] : one > other;
    });
    double cumulative = 0, before = 0;
    for (const size_t place : order) {
      cumulative += weights[place];
      before = cumulative - weights[place];
      if (before < limit) inside[place] = true;
    }
    if (before >= limit || order.size() == weights.size()) {
      if (std::find(inside.begin(), inside.end(), true) == inside.end()) inside[order[0]] = true;
      return inside;
    }
  }
}

}  // namespace

Warped warp(const std::vector<double>& scores, const Sampling& sampling) {
  const double top = *std::max_element(scores.begin(), scores.end());
  // a temperature so low that only the best tokens are left
  const double shift = std::isfinite(top / sampling.temperature) ? 0.0 : top;
  Warped warped;
  for (size_t token = 0; token < scores.size(); ++token) {
    const double scaled = (scores[token] - shift) / sampling.temperature;
    if (!(scaled > -std::numeric_limits<double>::infinity())) continue;
    warped.tokens.push_back(static_cast<int64_t>(token));
    warped.weights.push_back(scaled);
  }
  std::vector<double>& weights = warped.weights;
  if (sampling.top_k > 0 && sampling.top_k < static_cast<int64_t>(weights.size())) {
    const double least = nth_largest(weights, static_cast<size_t>(sampling.top_k));
    keep(warped, [&](size_t place) { return weights[place] >= least; });  // ties with the k-th stay, as in transformers
  }
  const double largest = *std::max_element(weights.begin(), weights.end());
  for (double& weight : weights) weight = std::exp(weight - largest);
  if (sampling.top_p < 1) {
    const std::vector<bool> inside = nucleus(weights, sampling.top_p);
    keep(warped, [&](size_t place) { return inside[place]; });
  }
  if (sampling.min_p > 0) {
    const double least = sampling.min_p * *std::max_element(weights.begin(), weights.end());
    keep(warped, [&](size_t place) { return weights[place] >= least; });
  }
  return warped;
}

size_t invert(const std::vector<double>& weights, double u) {
  std::vector<double> cumulative(weights.size());
  std::partial_sum(weights.begin(), weights.end(), cumulative.begin());
  const auto found = std::upper_bound(cumulative.begin(), cumulative.end(), u * cumulative.back());
  return std::min(static_cast<size_t>(found - cumulative.begin()), weights.size() - 1);
}

double nth_largest(std::vector<double> values, size_t count) {
  const auto nth = values.begin() + static_cast<int64_t>(count) - 1;
  std::nth_element(values.begin(), nth, values.end(), std::greater<>());
  return *nth;
}

}  // namespace jakiro::runtime
