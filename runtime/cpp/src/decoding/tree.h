// Draft trees as lists, and the integer bookkeeping of a round. Pure functions; no model in sight.
//
// Rows of a verification call are the root, row 0, and the tree's nodes, node i in row i + 1. A parent's row precedes its
// children's.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "token.h"

namespace jakiro::runtime {

using Rows = std::vector<int64_t>;

// The target's next token after a row, given the tokens on the path from the root to it (without the root's).
using NextToken = std::function<Token(int64_t row, const Tokens& path)>;

// What a round verifies under the root; tokens and parents [nodes].
struct DraftTree {
  Tokens tokens;
  Rows parents;           // the row of each node's parent
  int64_t from_head = 0;  // how many of the nodes the head drafted; they come first, the others are n-grams
};

// Where the target went in a tree.
struct AcceptedPath {
  Rows rows;      // the accepted rows, the root's first, [1 + accepted]
  Tokens tokens;  // the target's token after each of them; all but the last are the accepted nodes' tokens
};

// Follow the target's own tokens down the tree for as long as the tree has them.
//
// This is exact for any target distribution: x ~ target(. | path) is drawn first and the tree is looked at afterwards, so the
// tree decides only how many tokens one pass yields. next_token is asked for visited rows only, in order.
AcceptedPath accept(const DraftTree& tree, const NextToken& next_token);

// Whether every node's parent precedes it. parents [nodes]: 0 for the root, else the parent's row.
bool is_tree(const Rows& parents);

// Who sees whom, and how deep: a row sees itself and its ancestors.
struct TreeMask {
  std::vector<uint8_t> visible;  // [rows, rows], 0 or 1
  Rows depths;                   // [rows]: 0 for the root and for padding
};

// parents: [nodes]; rows: more than nodes, those after the tree's are padding and see themselves
TreeMask tree_mask(const Rows& parents, int64_t rows);

// Add a chain of tokens under the root to a tree: tokens that the tree has there are its nodes, the others come last.
//
// A node of both takes the larger probability, so that a child's is never above its parent's where neither had such.
// tokens, parents, probs: of the tree, [nodes] each; changed in place. probs: of being accepted
void merge_chain(Tokens& tokens, Rows& parents, std::vector<double>& probs, const Tokens& chain,
                 const std::vector<double>& chain_probs);

// The `count` best nodes of a tree, in their order, closed under parents: node numbers from 0, ascending.
//
// A child's rank is never above its parent's, so the best nodes hold their own ancestors; equal ranks go to the lower number.
// ranks: what nodes are compared by, the larger the better, [nodes]; none of them is NaN
Rows top_nodes(const std::vector<double>& ranks, const Rows& parents, int64_t count);

// The tree of some nodes, renumbered: tokens and parents [kept]. `kept` is ascending and closed under parents.
DraftTree subtree(const Tokens& tokens, const Rows& parents, const Rows& kept);

}  // namespace jakiro::runtime
