// How a draft phase chooses. The operators and their shapes: jakiro_export/graph/selection.py.
#include "selection.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "simd.h"

namespace jakiro {
namespace {

constexpr int64_t kAlone = 1 << 13;  // entries below which handing out work costs more than it gives

// The `count` largest of x [size], best first, the first of equals first.
void largest(const float* x, int64_t size, int64_t count, float* best, int64_t* index) {
  int64_t have = 0;
  auto take = [&](int64_t n) {
    int64_t place = have < count ? have++ : count - 1;
    for (; place > 0 && best[place - 1] < x[n]; --place) best[place] = best[place - 1], index[place] = index[place - 1];
    best[place] = x[n], index[place] = n;
  };
  int64_t n = 0;
  for (; n < std::min(count, size); ++n) take(n);
  for (; n < size && n % kLanes; ++n) {
    if (x[n] > best[count - 1]) take(n);
  }
  for (; n + kLanes <= size; n += kLanes) {
    for (uint32_t more = above(load(x + n), all(best[count - 1])); more; more &= more - 1) {
      const int64_t at = n + __builtin_ctz(more);
      if (x[at] > best[count - 1]) take(at);
    }
  }
  for (; n < size; ++n) {
    if (x[n] > best[count - 1]) take(n);
  }
}

float sum_of_exponentials(const float* x, int64_t size, float top) {
  const Floats highest = all(top);
  Floats sums = all(0.0f);
  int64_t n = 0;
  for (; n + kLanes <= size; n += kLanes) sums = sums + exponential(load(x + n) - highest);
  float sum = sum_of(sums);
  for (; n < size; ++n) sum += std::exp(x[n] - top);
  return sum;
}

}  // namespace

ort::Status* candidates(const Call& call) {
  const Tensor logits = call.input(0);
  const int64_t rows = logits.dims[0], vocab = logits.dims[1], count = call.input(1).as<int64_t>()[0];
  if (count < 1 || count > vocab) return call.fail("Candidates: there are not so many tokens");
  const int64_t dims[2] = {rows, count};
  float* best = static_cast<float*>(call.output(0, dims, 2));
  int64_t* index = static_cast<int64_t*>(call.output(1, dims, 2));
  auto work = [&](size_t row) {
    const float* x = logits.as<float>() + row * vocab;
    float* mine = best + row * count;
    largest(x, vocab, count, mine, index + row * count);
    const float log_total = mine[0] + std::log(sum_of_exponentials(x, vocab, mine[0]));
    for (int64_t n = 0; n < count; ++n) mine[n] -= log_total;
  };
  if (rows * vocab <= kAlone) {
    for (int64_t row = 0; row < rows; ++row) work(row);
  } else {
    call.parallel(rows, work);
  }
  return nullptr;
}

ort::Status* propose(const Call& call) {
  const Tensor scores = call.input(0), log_probs = call.input(1), tokens = call.input(2), numbers = call.input(3);
  const int64_t width = log_probs.dims[2], beams = log_probs.dims[0] * log_probs.dims[1];
  if (scores.count() != beams || numbers.count() != beams || tokens.count() != beams * width) {
    return call.fail("Propose: beam and candidates do not fit together");
  }
  const int64_t dims[2] = {log_probs.dims[0], log_probs.dims[1] * width};
  float* totals = static_cast<float*>(call.output(0, dims, 2));
  int64_t *proposed = static_cast<int64_t*>(call.output(1, dims, 2)), *parents = static_cast<int64_t*>(call.output(2, dims, 2));
  for (int64_t n = 0; n < beams * width; ++n) {
    totals[n] = scores.as<float>()[n / width] + log_probs.as<float>()[n];
    parents[n] = numbers.as<int64_t>()[n / width];
  }
  std::memcpy(proposed, tokens.data, beams * width * sizeof(int64_t));
  return nullptr;
}

ort::Status* best_nodes(const Call& call) {
  const Tensor scores = call.input(0), tokens = call.input(1), parents = call.input(2);
  const int64_t batch = scores.dims[0], size = scores.dims[1], count = call.input(3).as<int64_t>()[0];
  if (count < 1 || count > size || tokens.count() != batch * size || parents.count() != batch * size) {
    return call.fail("BestNodes: there are not so many candidates");
  }
  const int64_t dims[2] = {batch, count};
  int64_t *tree_tokens = static_cast<int64_t*>(call.output(0, dims, 2)), *tree_parents = static_cast<int64_t*>(call.output(1, dims, 2));
  float* tree_scores = static_cast<float*>(call.output(2, dims, 2));
  std::vector<float> best(count);
  std::vector<int64_t> kept(count), place(size);
  for (int64_t sequence = 0; sequence < batch; ++sequence) {
    const float* score = scores.as<float>() + sequence * size;
    largest(score, size, count, best.data(), kept.data());
    std::sort(kept.begin(), kept.end());
    std::fill(place.begin(), place.end(), 0);
    for (int64_t n = 0; n < count; ++n) place[kept[n]] = n + 1;
    for (int64_t n = 0; n < count; ++n) {
      const int64_t from = sequence * size + kept[n], parent = parents.as<int64_t>()[from];
      tree_tokens[sequence * count + n] = tokens.as<int64_t>()[from];
      tree_parents[sequence * count + n] = parent < 0 || parent >= size ? 0 : place[parent];
      tree_scores[sequence * count + n] = score[kept[n]];
    }
  }
  return nullptr;
}

ort::Status* mix_experts(const Call& call) {
  const Tensor router = call.input(0), first = call.input(1), second = call.input(2);
  const int64_t rows = first.dims[0], hidden = first.dims[1];
  if (router.count() != rows * 4 || second.count() != rows * hidden) return call.fail("MixExperts: rows do not fit together");
  float *primary = static_cast<float*>(call.output(0, first.dims, 2)), *contrast = static_cast<float*>(call.output(1, first.dims, 2));
  for (int64_t row = 0; row < rows; ++row) {
    const float* gate = router.as<float>() + row * 4;
    float shares[4];
    for (int n = 0; n < 4; n += 2) {
      const float top = std::max(gate[n], gate[n + 1]), left = std::exp(gate[n] - top), right = std::exp(gate[n + 1] - top);
      shares[n] = left / (left + right);
      shares[n + 1] = right / (left + right);
    }
    const float sign = shares[2] > shares[3] ? 1.0f : -1.0f;
    const float *a = first.as<float>() + row * hidden, *b = second.as<float>() + row * hidden;
    for (int64_t n = 0; n < hidden; ++n) {
      primary[row * hidden + n] = shares[0] * a[n] + shares[1] * b[n];
      contrast[row * hidden + n] = sign * (shares[2] * a[n] - shares[3] * b[n]);
    }
  }
  return nullptr;
}

}  // namespace jakiro
