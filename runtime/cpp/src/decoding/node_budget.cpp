#include "decoding/node_budget.h"

#include <algorithm>
#include <cmath>
#include <set>

namespace jakiro::runtime {
namespace {

constexpr double kWindow = 32;        // rounds over which the worth of drafting is averaged
constexpr int64_t kLongestPause = 4;  // rounds without a draft before another one is tried; their rows are drafted in one call
constexpr int64_t kRowStep = 8;       // without a plan, pruned trees are padded to a multiple of this: few shapes, few bindings

// Linear interpolation as numpy.interp's, to the last bit: the ends hold beyond them. xs ascending.
template <typename Number>
double interpolate(double x, const std::vector<Number>& xs, const std::vector<double>& ys) {
  if (std::isnan(x)) return x;
  const auto after = std::upper_bound(xs.begin(), xs.end(), x) - xs.begin();
  if (after == 0) return ys.front();
  const size_t left = static_cast<size_t>(after) - 1;
  const auto at = static_cast<double>(xs[left]);
  if (left + 1 == xs.size() || at == x) return ys[left];
  const double slope = (ys[left + 1] - ys[left]) / (static_cast<double>(xs[left + 1]) - at);
  return slope * (x - at) + ys[left];
}

std::vector<int64_t> ascending(const std::set<int64_t>& numbers) { return {numbers.begin(), numbers.end()}; }

}  // namespace

FixedBudget::FixedBudget(int64_t most) {
  most_ = most;
  std::set<int64_t> rows{1, 1 + most};
  for (int64_t count = kRowStep; count < 1 + most; count += kRowStep) rows.insert(count);
  row_counts_ = ascending(rows);
}

std::vector<double> FixedBudget::acceptance_probs(const std::vector<float>& scores) const {
  std::vector<double> probs;
  for (const float score : scores) probs.push_back(std::exp(static_cast<double>(score)));
  return probs;
}

int64_t FixedBudget::count(const std::vector<double>&, int64_t) { return most_; }

NodeBudget::NodeBudget(TreePlan plan, int64_t nodes, int64_t most) : plan_(std::move(plan)) {
  most_ = most;
  std::set<int64_t> counts{0, nodes, most};
  for (const int64_t rows : plan_.rows) {
    if (rows > 2 && rows <= most) counts.insert(rows - 1);
  }
  counts_ = ascending(counts);
  std::set<int64_t> rows{1, 1 + most};
  for (const int64_t count : counts_) rows.insert(count + 1);
  row_counts_ = ascending(rows);
  start();
}

void NodeBudget::start() {
  const int64_t capacity = plan_.smallest_capacity();
  rate_ = plan_.tokens_per_second / 1e3;
  milliseconds_ = plan_.draft_ms + plan_.host_ms + plan_.milliseconds(4, capacity);
  tokens_ = rate_ * milliseconds_;
  worth_ = rate_ * plan_.milliseconds(2, capacity) - 1;
  pause_ = paused_ = 0;
}

bool NodeBudget::should_draft() {
  if (paused_ < pause_) {
    ++paused_;
    return false;
  }
  return true;
}

// Where the plan has one probability for several log-probabilities, the head's order decides.
std::vector<double> NodeBudget::acceptance_probs(const std::vector<float>& scores) const {
  std::vector<double> probs;
  for (const float score : scores) {
    const float order = 1e-9f * score;  // in the scores' own precision
    probs.push_back(interpolate(static_cast<double>(score), plan_.log_probs, plan_.acceptance) + order);
  }
  return probs;
}

std::vector<double> NodeBudget::acceptance_probs(const std::vector<double>& scores) const {
  std::vector<double> probs;
  for (const double score : scores) probs.push_back(interpolate(score, plan_.log_probs, plan_.acceptance) + 1e-9 * score);
  return probs;
}

int64_t NodeBudget::count(const std::vector<double>& probs, int64_t capacity) {
  std::vector<double> gains{0.0};
  for (const double prob : probs) gains.push_back(gains.back() + prob);
  const std::vector<double> prices = price(capacity);
  size_t best = 0;
  double most_worth = 0;
  for (size_t place = 0; place < counts_.size() && counts_[place] < static_cast<int64_t>(gains.size()); ++place) {
    const double worth = gains[counts_[place]] - prices[place];
    if (place > 0 && !(worth > most_worth)) continue;
    best = place;
    most_worth = worth;
  }
  return counts_[best];
}

// What n-grams brought does not count: it comes without a draft.
void NodeBudget::observe_acceptance(int64_t nodes, int64_t accepted, int64_t capacity) {
  const double cost = interpolate(static_cast<double>(nodes), counts_, price(capacity));
  worth_ += (static_cast<double>(accepted) - cost - rate_ * plan_.draft_ms - worth_) / kWindow;
  paused_ = 0;
  pause_ = worth_ >= 0 ? 0 : std::min(kLongestPause, std::max<int64_t>(1, 2 * pause_));
}

// For answers that n-grams help: the plan knows the head alone, and an answer that repeats itself is much faster.
void NodeBudget::observe_throughput(int64_t nodes, int64_t gained, bool drafted, int64_t capacity) {
  const double took = pass_ms(nodes, capacity) + plan_.host_ms + plan_.draft_ms * (drafted ? 1 : 0);
  milliseconds_ += (took - milliseconds_) / kWindow;
  tokens_ += (static_cast<double>(gained) - tokens_) / kWindow;
  rate_ = tokens_ / milliseconds_;
}

// Milliseconds of a target pass over the root and `nodes` nodes.
double NodeBudget::pass_ms(int64_t nodes, int64_t capacity) {
  const auto [found, is_new] = passes_.try_emplace({nodes, capacity}, 0.0);
  if (is_new) found->second = plan_.milliseconds(std::max<int64_t>(2, 1 + nodes), capacity);
  return found->second;
}

// What verifying each of `counts` costs beyond verifying no node, in tokens.
std::vector<double> NodeBudget::price(int64_t capacity) {
  std::vector<double>& extra = extra_[capacity];
  if (extra.empty()) {
    for (const int64_t count : counts_) extra.push_back(pass_ms(count, capacity) - pass_ms(counts_[0], capacity));
  }
  std::vector<double> prices;
  for (const double each : extra) prices.push_back(rate_ * each);
  return prices;
}

}  // namespace jakiro::runtime
