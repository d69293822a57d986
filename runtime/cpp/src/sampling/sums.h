// Sums in NumPy's order, so that both runtimes get the same last bit.
#pragma once

#include <cstddef>

namespace jakiro::runtime {

// As numpy.sum adds contiguous doubles: halves, down to blocks of 128 with eight partial sums each.
inline double pairwise_sum(const double* values, size_t count) {
  if (count < 8) {
    double sum = 0;
    for (size_t place = 0; place < count; ++place) sum += values[place];
    return sum;
  }
  if (count > 128) {
    const size_t half = count / 2 - count / 2 % 8;
    return pairwise_sum(values, half) + pairwise_sum(values + half, count - half);
  }
  double part[8];
  for (size_t lane = 0; lane < 8; ++lane) part[lane] = values[lane];
  size_t place = 8;
  for (; place + 8 <= count; place += 8) {
    for (size_t lane = 0; lane < 8; ++lane) part[lane] += values[place + lane];
  }
  double sum = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
  for (; place < count; ++place) sum += values[place];
  return sum;
}

}  // namespace jakiro::runtime
