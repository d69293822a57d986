// Tree plan: what `jakiro-export --tree auto` measured, by which the runtime sizes its trees.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "format/fields.h"

namespace jakiro::runtime {

// Times in milliseconds, of one sequence on one machine.
struct TreePlan {
  std::vector<int64_t> rows;                         // numbers of rows of a target pass, ascending
  std::map<int64_t, std::vector<double>> target_ms;  // a pass of each of them, by the capacity of the cache in slots
  double draft_ms = 0;                               // the draft phase
  double host_ms = 0;                                // a round outside both
  std::vector<double> log_probs, acceptance;         // how often the target took a node of this log-probability; ascending
  double tokens_per_second = 0;                      // expected on the calibration answers

  // Throws FieldError where a field is missing or its lists do not fit together.
  static TreePlan read(const Fields& fields);

  int64_t smallest_capacity() const { return target_ms.begin()->first; }

  // A target pass, between what was measured and beyond: linear in rows and in capacity.
  double milliseconds(int64_t rows, int64_t capacity) const;
};

}  // namespace jakiro::runtime
