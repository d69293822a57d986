// Manifest: `engine.json`, which says what an engine directory holds.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "contract.h"
#include "format/tree_plan.h"

namespace jakiro::runtime {

constexpr const char* kExportAgain = "export it again, or copy the whole directory again";

// The target's sizes; `max_context` counts prompt and answer together, in tokens.
struct Model {
  std::string name;
  int64_t vocab_size, hidden_size, num_layers, num_kv_heads, head_dim, max_context;
  std::vector<int64_t> eos_token_ids;
};

// The draft graph: its own cache, and the shape of the tree that it drafts.
struct Draft {
  std::string variant;
  int64_t num_kv_heads, head_dim, depth, top_k;
  int64_t nodes;                        // the root not counted
  int64_t num_layers;                   // of the head, each with its cache
  std::vector<int64_t> feature_layers;  // the target's layers whose inputs it reads; none: the features after the final norm
  int64_t levels() const { return depth + 1; }  // the most tokens of the tree that one round can accept
};

// The fields of `engine.json` that decoding needs, all of them checked.
struct Manifest {
  Model model;
  Draft draft;
  bool bitwise;                               // plain and speculative decoding agree bit for bit
  std::map<std::string, std::string> graphs;  // the file of the graph "target" and of "draft"
  std::map<std::string, int64_t> files;       // size in bytes of every other file of the directory, by relative path
  std::optional<TreePlan> tree;

  // Throws UsageError where there is no engine in the directory, EngineError where its file is damaged or of another schema.
  static Manifest read(const std::filesystem::path& directory);

  GraphContract target_contract() const;
  GraphContract draft_contract() const;
};

// Compares the files of the directory with their sizes; `jakiro-run --check-files` compares their checksums. Throws EngineError.
void check_sizes(const Manifest& manifest, const std::filesystem::path& directory);

}  // namespace jakiro::runtime
