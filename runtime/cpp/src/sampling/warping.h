// Warping: temperature, top-k, top-p and min-p in transformers' order and with its meaning, in float64.
#pragma once

#include <cstdint>
#include <vector>

#include "sampling/parameters.h"

namespace jakiro::runtime {

// The tokens that may be drawn, ascending, and their weights (not normalised).
struct Warped {
  std::vector<int64_t> tokens;
  std::vector<double> weights;
};

// scores: [vocab], the largest of them finite
Warped warp(const std::vector<double>& scores, const Sampling& sampling);

// The first index at which the cumulative weight exceeds u times the whole, u in [0, 1).
size_t invert(const std::vector<double>& weights, double u);

// The count-th largest of some values, count from 1.
double nth_largest(std::vector<double> values, size_t count);

}  // namespace jakiro::runtime
