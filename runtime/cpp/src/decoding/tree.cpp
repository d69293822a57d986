#include "decoding/tree.h"

#include <algorithm>
#include <map>
#include <numeric>

namespace jakiro::runtime {

AcceptedPath accept(const DraftTree& tree, const NextToken& next_token) {
  AcceptedPath path{{0}, {next_token(0, {})}};
  for (size_t node = 0; node < tree.tokens.size(); ++node) {  // children come after their parents: one pass
    if (tree.parents[node] == path.rows.back() && tree.tokens[node] == path.tokens.back()) {
      const auto row = static_cast<int64_t>(node) + 1;
      path.rows.push_back(row);
      path.tokens.push_back(next_token(row, path.tokens));
    }
  }
  return path;
}

bool is_tree(const Rows& parents) {
  for (size_t node = 0; node < parents.size(); ++node) {
    if (parents[node] < 0 || parents[node] > static_cast<int64_t>(node)) return false;
  }
  return true;
}

TreeMask tree_mask(const Rows& parents, int64_t rows) {
  TreeMask mask{std::vector<uint8_t>(static_cast<size_t>(rows * rows), 0), Rows(static_cast<size_t>(rows), 0)};
  const auto nodes = static_cast<int64_t>(parents.size());
  for (int64_t row = 0; row < rows; ++row) {
    uint8_t* const visible = mask.visible.data() + row * rows;
    if (row > 0 && row <= nodes) {
      const int64_t parent = parents[row - 1];
      std::copy_n(mask.visible.data() + parent * rows, rows, visible);
      mask.depths[row] = mask.depths[parent] + 1;
    }
    visible[row] = 1;
  }
  return mask;
}

void merge_chain(Tokens& tokens, Rows& parents, std::vector<double>& probs, const Tokens& chain,
                 const std::vector<double>& chain_probs) {
  std::map<std::pair<int64_t, Token>, int64_t> rows;  // by parent and token
  for (size_t node = 0; node < tokens.size(); ++node) rows[{parents[node], tokens[node]}] = static_cast<int64_t>(node) + 1;
  int64_t above = 0;
  for (size_t link = 0; link < chain.size(); ++link) {
    const auto found = rows.find({above, chain[link]});
    int64_t row;
    if (found == rows.end()) {
      tokens.push_back(chain[link]);
      parents.push_back(above);
      probs.push_back(chain_probs[link]);
      row = static_cast<int64_t>(tokens.size());
    } else {
      row = found->second;
      probs[row - 1] = std::max(probs[row - 1], chain_probs[link]);
    }
    above = row;
  }
}

Rows top_nodes(const std::vector<double>& ranks, const Rows& parents, int64_t count) {
  Rows kept(ranks.size());
  std::iota(kept.begin(), kept.end(), 0);
  std::stable_sort(kept.begin(), kept.end(), [&](int64_t one, int64_t other) { return ranks[one] > ranks[other]; });
  kept.resize(std::min(kept.size(), static_cast<size_t>(count)));
  std::sort(kept.begin(), kept.end());
  std::vector<bool> has_row(ranks.size() + 1, false);
  has_row[0] = true;
  Rows closed;
  for (const int64_t node : kept) {
    if (!has_row[parents[node]]) continue;
    has_row[node + 1] = true;
    closed.push_back(node);
  }
  return closed;
}

DraftTree subtree(const Tokens& tokens, const Rows& parents, const Rows& kept) {
  Rows row(tokens.size() + 1, 0);
  DraftTree tree;
  for (const int64_t node : kept) {
    tree.tokens.push_back(tokens[node]);
    tree.parents.push_back(row[parents[node]]);
    row[node + 1] = static_cast<int64_t>(tree.tokens.size());
  }
  return tree;
}

}  // namespace jakiro::runtime
