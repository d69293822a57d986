// Propose, BestNodes: how a beam of draft tokens grows, and which of all candidates become the tree.
//
//     Propose(scores [batch, beam], log_probs [batch, beam, top_k], tokens int64 [batch, beam, top_k], numbers int64 [batch,
//     beam])
//         -> totals, tokens, parents [batch, beam * top_k]: what each beam entry proposes, with the entry's number as its parent
//     BestNodes(scores [batch, candidates], tokens, parents int64 [batch, candidates], count [1])
//         -> tokens, parents, scores [batch, count]: the best, in candidate order, so that a parent precedes its child; parents
//         are
//            numbered among them from 1, and 0 is the root
//
// Why kernels: the tensors have a hundred entries, so as standard operators each step costs what a dozen operators cost to start.
#include <algorithm>
#include <cstring>
#include <vector>

#include "operators.h"
#include "top_k.h"

namespace jakiro {

ort::Status* propose(const Call& call) {
  const Tensor scores = call.input(0), log_probs = call.input(1), tokens = call.input(2), numbers = call.input(3);
  const int64_t width = log_probs.dims[2], beams = log_probs.dims[0] * log_probs.dims[1];
  if (scores.count() != beams || numbers.count() != beams || tokens.count() != beams * width) {
    return call.fail("Propose: beam and candidates do not have matching shapes");
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
    return call.fail("BestNodes: count is not between 1 and the number of candidates, or the shapes differ");
  }
  const int64_t dims[2] = {batch, count};
  int64_t *tree_tokens = static_cast<int64_t*>(call.output(0, dims, 2)),
          *tree_parents = static_cast<int64_t*>(call.output(1, dims, 2));
  float* tree_scores = static_cast<float*>(call.output(2, dims, 2));
  std::vector<float> best(count);
  std::vector<int64_t> chosen(count), number(size);
  for (int64_t sequence = 0; sequence < batch; ++sequence) {
    const float* score = scores.as<float>() + sequence * size;
    top_k(score, size, count, best.data(), chosen.data());
    std::sort(chosen.begin(), chosen.end());
    std::fill(number.begin(), number.end(), 0);
    for (int64_t n = 0; n < count; ++n) number[chosen[n]] = n + 1;
    for (int64_t n = 0; n < count; ++n) {
      const int64_t from = sequence * size + chosen[n], parent = parents.as<int64_t>()[from];
      tree_tokens[sequence * count + n] = tokens.as<int64_t>()[from];
      tree_parents[sequence * count + n] = parent < 0 || parent >= size ? 0 : number[parent];
      tree_scores[sequence * count + n] = score[chosen[n]];
    }
  }
  return nullptr;
}

}  // namespace jakiro
