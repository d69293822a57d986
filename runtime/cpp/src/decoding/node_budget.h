// Node budgets: how much of a drafted tree a round verifies, and whether it drafts at all.
//
// A node is accepted where its whole path is, so a round that verifies the n best nodes gains 1 + the sum of their acceptance
// probabilities. Rounds follow each other, so what counts is the rate in the long run: a node is worth its row while it brings
// more tokens than the same milliseconds bring on average (Dinkelbach's method for a ratio). No clock is read, so the same
// engine verifies the same nodes wherever it runs.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "format/tree_plan.h"

namespace jakiro::runtime {

class Budget {
 public:
  virtual ~Budget() = default;

  int64_t most() const { return most_; }                                  // nodes of a round at most
  const std::vector<int64_t>& row_counts() const { return row_counts_; }  // rows a verification is padded to, ascending

  // An answer begins: nothing of the one before is used, so that an answer does not depend on what came earlier.
  virtual void start() {}
  // Whether the next round drafts.
  virtual bool should_draft() { return true; }
  // Whether a tree of `nodes` nodes is verified whole, without looking at its probabilities.
  virtual bool takes_all(int64_t nodes) const { return nodes <= most_; }
  // How likely the target accepts drafted nodes, from their cumulative log-probabilities under the head; [nodes] both.
  virtual std::vector<double> acceptance_probs(const std::vector<float>& scores) const = 0;
  // How many of the best nodes to verify. probs: of being accepted, best first; capacity: slots of the target's cache
  virtual int64_t count(const std::vector<double>& probs, int64_t capacity) = 0;
  // A round that drafted has verified `nodes` nodes of the head's and accepted `accepted` of them.
  virtual void observe_acceptance(int64_t nodes, int64_t accepted, int64_t capacity) = 0;
  // A round has verified `nodes` nodes and gained `gained` tokens.
  virtual void observe_throughput(int64_t nodes, int64_t gained, bool drafted, int64_t capacity) = 0;

 protected:
  int64_t most_ = 0;
  std::vector<int64_t> row_counts_;
};

// The same number of nodes in every round.
class FixedBudget : public Budget {
 public:
  explicit FixedBudget(int64_t most);
  std::vector<double> acceptance_probs(const std::vector<float>& scores) const override;
  int64_t count(const std::vector<double>& probs, int64_t capacity) override;
  void observe_acceptance(int64_t, int64_t, int64_t) override {}
  void observe_throughput(int64_t, int64_t, bool, int64_t) override {}
};

// The nodes that are worth their rows, by a measured plan.
class NodeBudget : public Budget {
 public:
  // nodes: of the tree that the engine drafts; most: nodes that it may verify, where n-grams join the tree
  NodeBudget(TreePlan plan, int64_t nodes, int64_t most);

  const std::vector<int64_t>& counts() const { return counts_; }  // the numbers of nodes that it may choose, ascending; 0 first

  void start() override;
  bool should_draft() override;
  bool takes_all(int64_t nodes) const override { return nodes == 0; }
  std::vector<double> acceptance_probs(const std::vector<float>& scores) const override;
  std::vector<double> acceptance_probs(const std::vector<double>& scores) const;
  int64_t count(const std::vector<double>& probs, int64_t capacity) override;
  void observe_acceptance(int64_t nodes, int64_t accepted, int64_t capacity) override;
  void observe_throughput(int64_t nodes, int64_t gained, bool drafted, int64_t capacity) override;

 private:
  double pass_ms(int64_t nodes, int64_t capacity);
  std::vector<double> price(int64_t capacity);

  const TreePlan plan_;
  std::vector<int64_t> counts_;
  std::map<std::pair<int64_t, int64_t>, double> passes_;  // milliseconds by nodes and capacity
  std::map<int64_t, std::vector<double>> extra_;          // milliseconds beyond a pass without nodes, by capacity
  double rate_ = 0, milliseconds_ = 0, tokens_ = 0, worth_ = 0;
  int64_t pause_ = 0, paused_ = 0;
};

}  // namespace jakiro::runtime
