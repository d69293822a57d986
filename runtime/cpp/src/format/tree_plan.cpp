#include "format/tree_plan.h"

#include <algorithm>

namespace jakiro::runtime {
namespace {

// Linear interpolation, continued beyond the ends; xs ascending.
double line(int64_t x, const std::vector<int64_t>& xs, const std::vector<double>& ys) {
  if (xs.size() == 1) return ys[0];
  const auto place = std::lower_bound(xs.begin(), xs.end(), x) - xs.begin();
  const auto right = std::min(std::max<int64_t>(1, place), static_cast<int64_t>(xs.size()) - 1);
  const double share = static_cast<double>(x - xs[right - 1]) / static_cast<double>(xs[right] - xs[right - 1]);
  return ys[right - 1] + share * (ys[right] - ys[right - 1]);
}

// A capacity as the file writes it, in decimal digits; 0 for anything else.
int64_t capacity_of(const std::string& text) {
  if (text.empty() || text.size() > 10 || text.find_first_not_of("0123456789") != std::string::npos) return 0;
  const int64_t capacity = std::stoll(text);
  return capacity < int64_t{1} << 31 ? capacity : 0;
}

}  // namespace

TreePlan TreePlan::read(const Fields& fields) {
  TreePlan plan;
  plan.rows = fields.wholes("rows", true);
  const auto target_ms = fields.named_lists("target_ms");
  plan.draft_ms = fields.number("draft_ms");
  plan.host_ms = fields.number("host_ms", 0.0);
  plan.log_probs = fields.numbers("log_probs");
  plan.acceptance = fields.numbers("acceptance");
  const auto expected = fields.named_numbers("expected");
  const auto shape = fields.named_wholes("shape");

  if (plan.rows.empty() || target_ms.empty()) throw FieldError("the field tree holds no measured costs");
  if (std::adjacent_find(plan.rows.begin(), plan.rows.end(), std::greater_equal<>()) != plan.rows.end()) {
    throw FieldError("the field tree.rows is not ascending");
  }
  for (const auto& [text, times] : target_ms) {
    const int64_t capacity = capacity_of(text);
    if (capacity == 0 || times.size() != plan.rows.size()) {
      throw FieldError("the field tree.target_ms." + text + " has " + std::to_string(times.size()) + " times for " +
                       std::to_string(plan.rows.size()) + " numbers of rows");
    }
    plan.target_ms[capacity] = times;
  }
  if (plan.log_probs.empty() || plan.log_probs.size() != plan.acceptance.size() ||
      !std::is_sorted(plan.log_probs.begin(), plan.log_probs.end())) {
    throw FieldError("the fields tree.log_probs and tree.acceptance do not fit together");
  }
  if (expected.count("tokens_per_second") == 0) throw FieldError("the field tree.expected.tokens_per_second is missing");
  for (const char* name : {"depth", "top_k", "nodes"}) {
    if (!shape.empty() && shape.count(name) == 0) throw FieldError(std::string("the field tree.shape.") + name + " is missing");
  }
  plan.tokens_per_second = expected.at("tokens_per_second");
  return plan;
}

double TreePlan::milliseconds(int64_t row_count, int64_t capacity) const {
  std::vector<int64_t> capacities;
  std::vector<double> at;
  for (const auto& [slots, times] : target_ms) {
    capacities.push_back(slots);
    at.push_back(line(row_count, rows, times));
  }
  return line(capacity, capacities, at);
}

}  // namespace jakiro::runtime
