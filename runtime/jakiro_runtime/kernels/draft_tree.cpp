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
#include <vector>

#include "operators.h"
#include "top_k.h"

namespace jakiro {

void propose(const Call& call) {
  Dim batch{"batch"}, beam{"beam"}, width{"top_k"};
  const float* scores = call.input(0, batch, beam).as<float>();
  const float* log_probs = call.input(1, batch, beam, width).as<float>();
  const int64_t* tokens = call.input(2, batch, beam, width).as<int64_t>();
  const int64_t* numbers = call.input(3, batch, beam).as<int64_t>();
  const int64_t dims[2] = {batch, beam * width}, count = batch * dims[1];
  float* totals = call.output<float>(0, dims, 2);
  int64_t *proposed = call.output<int64_t>(1, dims, 2), *parents = call.output<int64_t>(2, dims, 2);
  for (int64_t n = 0; n < count; ++n) {
    totals[n] = scores[n / width] + log_probs[n];
    parents[n] = numbers[n / width];
  }
  std::copy(tokens, tokens + count, proposed);
}

void best_nodes(const Call& call) {
  Dim batch{"batch"}, size{"candidates", 1}, one = fixed(1);
  const float* scores = call.input(0, batch, size).as<float>();
  const int64_t* tokens = call.input(1, batch, size).as<int64_t>();
  const int64_t* parents = call.input(2, batch, size).as<int64_t>();
  const int64_t count = *call.lengths(3, one, 1, size);
  const int64_t dims[2] = {batch, count};
  int64_t *tree_tokens = call.output<int64_t>(0, dims, 2), *tree_parents = call.output<int64_t>(1, dims, 2);
  float* tree_scores = call.output<float>(2, dims, 2);
  std::vector<float> best(count);
  std::vector<int64_t> chosen(count), number(size);
  for (int64_t sequence = 0; sequence < batch; ++sequence) {
    const float* score = scores + sequence * size;
    top_k(score, size, count, best.data(), chosen.data());
    std::sort(chosen.begin(), chosen.end());
    std::fill(number.begin(), number.end(), 0);
    for (int64_t n = 0; n < count; ++n) number[chosen[n]] = n + 1;
    for (int64_t n = 0; n < count; ++n) {
      const int64_t from = sequence * size + chosen[n], parent = parents[from];
      tree_tokens[sequence * count + n] = tokens[from];
      tree_parents[sequence * count + n] = parent < 0 || parent >= size ? 0 : number[parent];
      tree_scores[sequence * count + n] = score[chosen[n]];
    }
  }
}

}  // namespace jakiro
