// The golden vectors of tests/vectors, compared with what the C++ runtime gives.
//
//   jakiro_vectors FILE...    exit code 1 and the case that differs, if there is one; else how many cases there were
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "decoding/ngram.h"
#include "decoding/node_budget.h"
#include "decoding/tree.h"
#include "sampling/philox.h"
#include "sampling/sampler.h"
#include "sampling/warping.h"

using namespace jakiro::runtime;
using nlohmann::json;

namespace {

// Equal; doubles up to the last places, in which mathematical libraries differ.
bool same(const json& found, const json& expected) {
  if (found.is_number() && expected.is_number()) {
    const double one = found.get<double>(), other = expected.get<double>();
    return std::abs(one - other) <= 1e-12 * std::max(std::abs(one), std::abs(other));
  }
  if (found.type() != expected.type() || found.size() != expected.size()) return false;
  if (!found.is_structured()) return found == expected;
  for (const auto& [key, value] : expected.items()) {
    if (found.is_object() && !found.contains(key)) return false;
    if (!same(found.is_object() ? found[key] : found[std::stoul(key)], value)) return false;
  }
  return true;
}

template <typename Value>
Value get(const json& given, const char* name) {
  return given.at(name).get<Value>();
}

Tokens tokens_of(const json& given) { return get<Tokens>(given, "tokens"); }
Rows parents_of(const json& given) { return get<Rows>(given, "parents"); }

Sampling sampling_of(const json& given) {
  Sampling sampling;
  sampling.temperature = given.value("temperature", sampling.temperature);
  sampling.top_k = given.value("top_k", sampling.top_k);
  sampling.top_p = given.value("top_p", sampling.top_p);
  sampling.min_p = given.value("min_p", sampling.min_p);
  sampling.repetition_penalty = given.value("repetition_penalty", sampling.repetition_penalty);
  sampling.min_new_tokens = given.value("min_new_tokens", sampling.min_new_tokens);
  const json biases = given.value("logit_bias", json::object());
  for (const auto& [token, bias] : biases.items()) {
    sampling.logit_bias[std::stoll(token)] = bias.get<double>();
  }
  return sampling;
}

json run_tree_mask(const json& given) {
  const auto rows = get<int64_t>(given, "rows");
  const TreeMask mask = tree_mask(parents_of(given), rows);
  json shown = json::array();
  for (int64_t row = 0; row < rows; ++row) {
    std::string text;
    for (int64_t other = 0; other < rows; ++other) text += mask.visible[row * rows + other] != 0 ? '1' : '0';
    shown.push_back(text);
  }
  return {{"mask", shown}, {"depths", mask.depths}};
}

json run_merge_chain(const json& given) {
  Tokens tokens = tokens_of(given);
  Rows parents = parents_of(given);
  auto probs = get<std::vector<double>>(given, "probs");
  merge_chain(tokens, parents, probs, get<Tokens>(given, "chain"), get<std::vector<double>>(given, "chain_probs"));
  return {{"tokens", tokens}, {"parents", parents}, {"probs", probs}};
}

json run_subtree(const json& given) {
  const DraftTree tree = subtree(tokens_of(given), parents_of(given), get<Rows>(given, "kept"));
  return {{"tokens", tree.tokens}, {"parents", tree.parents}};
}

json run_accept(const json& given) {
  const auto next = get<Tokens>(given, "next_tokens");
  const AcceptedPath path = accept({tokens_of(given), parents_of(given)}, [&](int64_t row, const Tokens&) { return next[row]; });
  return {{"rows", path.rows}, {"tokens", path.tokens}};
}

json run_draw(const json& given) {
  const Warped warped = warp(get<std::vector<double>>(given, "scores"), sampling_of(given.at("sampling")));
  json drawn = json::array();
  for (const double u : get<std::vector<double>>(given, "u")) drawn.push_back(warped.tokens[invert(warped.weights, u)]);
  return {{"tokens", warped.tokens}, {"weights", warped.weights}, {"drawn", drawn}};
}

json run_scores(const json& given) {
  const auto logits = get<std::vector<double>>(given, "logits");
  const Sampler sampler(sampling_of(given.at("sampling")), get<std::vector<int64_t>>(given, "eos"),
                        static_cast<int64_t>(logits.size()));
  json shown = json::array();
  for (const double score : sampler.scores(logits, get<Tokens>(given, "prefix"), get<int64_t>(given, "generated"))) {
    shown.push_back(std::isinf(score) ? json() : json(score));
  }
  return shown;
}

json run_ngram(const json& given) {
  Tokens tokens = get<Tokens>(given, "prompt");
  NGramProposer proposer(tokens);
  json found = json::array();
  auto steps = get<std::vector<Tokens>>(given, "steps");
  steps.insert(steps.begin(), Tokens{});
  for (const Tokens& step : steps) {
    tokens.insert(tokens.end(), step.begin(), step.end());
    const Proposal proposal = proposer.propose(get<int64_t>(given, "most"));
    found.push_back({{"tokens", proposal.tokens},
                     {"acceptance_probs", proposal.acceptance_probs},
                     {"is_unbeatable", proposal.is_unbeatable()}});
  }
  return found;
}

json run_node_budget(const json& given) {
  NodeBudget budget(TreePlan::read(Fields(given.at("plan"), "tree")), get<int64_t>(given, "nodes"), get<int64_t>(given, "most"));
  json found = json::array();
  for (const json& round : given.at("rounds")) {
    const auto capacity = get<int64_t>(round, "capacity");
    const bool drafts = budget.should_draft();
    std::vector<double> probs;
    if (drafts) probs = budget.acceptance_probs(get<std::vector<double>>(round, "scores"));
    std::vector<double> best = probs;
    std::sort(best.begin(), best.end(), std::greater<>());
    const int64_t count = budget.count(best, capacity), accepted = std::min(get<int64_t>(round, "accepted"), count);
    if (drafts) budget.observe_acceptance(count, accepted, capacity);
    budget.observe_throughput(count, accepted + 1, drafts, capacity);
    found.push_back({{"drafts", drafts}, {"acceptance_probs", probs}, {"count", count}});
  }
  return {{"counts", budget.counts()}, {"row_counts", budget.row_counts()}, {"rounds", found}};
}

json run_philox(const json& given) {
  const auto key = get<std::array<uint32_t, 2>>(given, "key");
  return philox(key[0], key[1], get<std::array<uint32_t, 4>>(given, "counter"));
}

const std::map<std::string, std::function<json(const json&)>> kCalls{
    {"tree_mask", run_tree_mask},
    {"merge_chain", run_merge_chain},
    {"top_nodes",
     [](const json& given) {
       return json(top_nodes(get<std::vector<double>>(given, "ranks"), parents_of(given), get<int64_t>(given, "count")));
     }},
    {"subtree", run_subtree},
    {"accept", run_accept},
    {"philox", run_philox},
    {"uniform", [](const json& given) { return json(uniform(get<uint64_t>(given, "seed"), get<uint64_t>(given, "position"))); }},
    {"draw", run_draw},
    {"scores", run_scores},
    {"ngram", run_ngram},
    {"node_budget", run_node_budget},
    {"fixed_row_counts", [](const json& given) { return json(FixedBudget(get<int64_t>(given, "most")).row_counts()); }},
};

}  // namespace

int main(int count, char** names) {
  size_t cases = 0;
  for (int place = 1; place < count; ++place) {
    std::ifstream file(names[place]);
    for (const json& each : json::parse(file)) {
      const json found = kCalls.at(each.at("call"))(each.at("given"));
      if (!same(found, each.at("expected"))) {
        std::printf("%s: %s\ngave %s\n", names[place], each.dump().c_str(), found.dump().c_str());
        return 1;
      }
      ++cases;
    }
  }
  std::printf("%zu cases\n", cases);
  return 0;
}
