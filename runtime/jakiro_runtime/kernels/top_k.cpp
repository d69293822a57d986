// BestToken, Candidates: the largest logits of each row.
//
//     BestToken(logits [..., vocab]) -> int64 [...]
//     Candidates(logits [rows, vocab], count [1]) -> log_probs [rows, count], index int64 [rows, count], best first
//
// Why so: few entries are wanted of a long row. One pass compares 16 entries at a time with the smallest of the best found so
// far; almost none pass, so the sorted insertion that follows is rare. Of equal logits the first counts, as in ONNX's ArgMax and
// TopK.
#include <algorithm>
#include <cmath>

#include "operators.h"
#include "simd.h"
#include "top_k.h"

namespace jakiro {
namespace {

constexpr int64_t kSerialEntries = 1 << 13;  // entries below which a hand-out to threads costs more than it saves

float sum_exp(const float* x, int64_t size, float max) {
  const Floats highest = broadcast(max);
  Floats sums = broadcast(0.0f);
  int64_t n = 0;
  for (; n + kLanes <= size; n += kLanes) sums = sums + exp(load(x + n) - highest);
  float sum = reduce_add(sums);
  for (; n < size; ++n) sum += std::exp(x[n] - max);
  return sum;
}

}  // namespace

void top_k(const float* x, int64_t size, int64_t count, float* best, int64_t* index) {
  int64_t found = 0;
  auto insert = [&](int64_t n) {
    int64_t place = found < count ? found++ : count - 1;
    for (; place > 0 && best[place - 1] < x[n]; --place) best[place] = best[place - 1], index[place] = index[place - 1];
    best[place] = x[n], index[place] = n;
  };
  int64_t n = 0;
  for (; n < std::min(count, size); ++n) insert(n);
  for (; n < size && n % kLanes; ++n) {
    if (x[n] > best[count - 1]) insert(n);
  }
  for (; n + kLanes <= size; n += kLanes) {
    for (uint32_t mask = greater(load(x + n), broadcast(best[count - 1])); mask; mask &= mask - 1) {
      const int64_t at = n + __builtin_ctz(mask);
      if (x[at] > best[count - 1]) insert(at);
    }
  }
  for (; n < size; ++n) {
    if (x[n] > best[count - 1]) insert(n);
  }
}

void best_token(const Call& call) {
  const Tensor logits = call.rows(0);
  const int64_t vocab = logits.last(), rows = logits.count() / vocab;
  int64_t* best = call.output<int64_t>(0, logits.dims, logits.rank - 1);
  auto work = [&](size_t row) {
    const float* x = logits.as<float>() + row * vocab;
    Floats most = broadcast(x[0]);
    int64_t n = 0;
    for (; n + kLanes <= vocab; n += kLanes) most = max(most, load(x + n));
    float largest = reduce_max(most);
    for (; n < vocab; ++n) largest = std::max(largest, x[n]);
    const Floats wanted = broadcast(largest);
    for (n = 0; n + kLanes <= vocab; n += kLanes) {
      if (const uint32_t found = equal(load(x + n), wanted)) {
        n += __builtin_ctz(found);
        break;
      }
    }
    while (n < vocab && x[n] != largest) ++n;
    best[row] = n < vocab ? n : 0;  // all NaN
  };
  if (rows) call.parallel(rows, work);
}

void candidates(const Call& call) {
  Dim rows{"rows"}, vocab{"vocab", 1}, one = fixed(1);
  const float* logits = call.input(0, rows, vocab).as<float>();
  const int64_t count = *call.lengths(1, one, 1, vocab);
  const int64_t dims[2] = {rows, count};
  float* best = call.output<float>(0, dims, 2);
  int64_t* index = call.output<int64_t>(1, dims, 2);
  auto work = [&](size_t row) {
    const float* x = logits + row * vocab;
    float* mine = best + row * count;
    top_k(x, vocab, count, mine, index + row * count);
    const float log_total = mine[0] + std::log(sum_exp(x, vocab, mine[0]));
    for (int64_t n = 0; n < count; ++n) mine[n] -= log_total;
  };
  if (rows * vocab <= kSerialEntries) {
    for (int64_t row = 0; row < rows; ++row) work(row);
  } else {
    call.parallel(rows, work);
  }
}

}  // namespace jakiro
