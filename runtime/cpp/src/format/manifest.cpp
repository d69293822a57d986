#include "format/manifest.h"

#include <nlohmann/json.hpp>

#include "errors.h"
#include "format/files.h"

namespace jakiro::runtime {
namespace {

namespace fs = std::filesystem;

constexpr const char* kName = "engine.json";
constexpr int64_t kSchema = 1;
constexpr uint64_t kLargest = 64 << 20;  // bytes of an engine.json

Model read_model(const Fields& fields) {
  Model model;
  model.name = fields.text("name");
  fields.text("architecture");
  model.vocab_size = fields.whole("vocab_size", 1, 1 << 24);
  model.hidden_size = fields.whole("hidden_size", 1, 1 << 20);
  model.num_layers = fields.whole("num_layers", 1, 1 << 12);
  model.num_kv_heads = fields.whole("num_kv_heads", 1, 1 << 12);
  model.head_dim = fields.whole("head_dim", 1, 1 << 14);
  model.max_context = fields.whole("max_context", 1, 1 << 30);
  model.eos_token_ids = fields.wholes("eos_token_ids", false);
  for (const int64_t token : model.eos_token_ids) {
    if (token >= model.vocab_size) {
      throw FieldError("the field model.eos_token_ids holds a token outside the vocabulary of " +
                       std::to_string(model.vocab_size));
    }
  }
  return model;
}

Draft read_draft(const Fields& fields) {
  Draft draft;
  draft.variant = fields.text("variant");
  draft.num_kv_heads = fields.whole("num_kv_heads", 1, 1 << 12);
  draft.head_dim = fields.whole("head_dim", 1, 1 << 14);
  draft.depth = fields.whole("depth", 0, 1 << 10);
  draft.top_k = fields.whole("top_k", 1, 1 << 16);
  draft.nodes = fields.whole("nodes", 1, 1 << 14);
  fields.whole_or_null("draft_vocab");
  fields.text("pairing", "parent");
  fields.flag("parallel_step", true);
  fields.whole("num_experts", 0, kLargestWhole, 2);
  draft.num_layers = fields.whole("num_layers", 1, 1 << 8, 1);
  draft.feature_layers = fields.wholes("feature_layers", false);
  return draft;
}

// Throws FieldError where a file would lie outside the directory.
void check_inside(const std::string& name) {
  const fs::path path(name);
  bool inside = !name.empty() && path.is_relative() && path != "." && name.find('\0') == std::string::npos;
  for (const fs::path& part : path) inside = inside && part != "..";
  if (!inside) throw FieldError("the file '" + name + "' lies outside the directory");
}

void check_feature_layers(const Manifest& manifest) {
  int64_t last = -1;
  for (const int64_t layer : manifest.draft.feature_layers) {
    if (layer <= last || layer > manifest.model.num_layers) {
      throw FieldError("the field draft.feature_layers holds " + std::to_string(layer) + "; ascending numbers from 0 to " +
                       std::to_string(manifest.model.num_layers) + " were expected");
    }
    last = layer;
  }
}

Manifest read_manifest(const Fields& fields) {
  Manifest manifest;
  manifest.model = read_model(fields.object("model"));
  manifest.draft = read_draft(fields.object("draft"));
  check_feature_layers(manifest);
  fields.texts("precision");
  const std::string equality = fields.text("equality");
  manifest.graphs = fields.texts("graphs");
  for (const auto& [name, file] : fields.objects("files")) {
    manifest.files[name] = file.whole("bytes", 0, kLargestWhole);
    file.text("sha256");
  }
  if (fields.has("tree")) manifest.tree = TreePlan::read(fields.object("tree"));
  for (const char* graph : {kTarget, kDraft}) {
    if (manifest.graphs.count(graph) == 0) throw FieldError(std::string("the field graphs.") + graph + " is missing");
  }
  for (const auto& [graph, name] : manifest.graphs) check_inside(name);
  for (const auto& [name, bytes] : manifest.files) check_inside(name);
  if (equality != "bitwise" && equality != "numerical") {
    throw FieldError("the field equality is '" + equality + "'; bitwise or numerical was expected");
  }
  manifest.bitwise = equality == "bitwise";
  return manifest;
}

// What a parser says, which may quote bytes of the file that are no text.
std::string one_line(std::string text) {
  for (char& each : text) each = each >= ' ' && each <= '~' ? each : '?';
  return text.size() <= 300 ? text : text.substr(0, 297) + "...";
}

void check_schema(const nlohmann::json& data, const std::string& where) {
  const auto schema = data.is_object() ? data.find("schema") : data.end();
  if (!data.is_object() || schema == data.end() || !schema->is_number_integer()) {
    throw EngineError(where + " has no schema number, expected " + std::to_string(kSchema) + "; " + kExportAgain + ".");
  }
  if (*schema != kSchema) {
    const char* remedy = *schema > kSchema ? "update the jakiro runtime" : "export it again with this version";
    throw EngineError(where + " has schema " + schema->dump() + ", but this version reads schema " + std::to_string(kSchema) +
                      "; " + remedy + ".");
  }
}

}  // namespace

Manifest Manifest::read(const fs::path& directory) {
  const std::string where = (directory / kName).string();
  std::error_code ignored;
  if (!fs::is_directory(directory, ignored)) {
    throw UsageError("There is no engine directory at " + directory.string() + "; make one with jakiro-export --out " +
                     directory.string() + ".");
  }
  nlohmann::json data;
  try {
    data = nlohmann::json::parse(read_file(where, kLargest));
  } catch (const FileError& error) {
    if (error.missing) {
      throw UsageError(directory.string() + " holds no " + kName +
                       ", so it is not an engine directory; give the folder jakiro-export wrote.");
    }
    throw EngineError(where + " cannot be read (" + error.what() + "); " + kExportAgain + ".");
  } catch (const nlohmann::json::exception& error) {
    throw EngineError(where + " cannot be read (" + one_line(error.what()) + "); " + kExportAgain + ".");
  }
  check_schema(data, where);
  try {
    return read_manifest(Fields(data, ""));
  } catch (const FieldError& error) {
    throw EngineError("In " + where + ", " + error.what() + "; " + kExportAgain + ".");
  }
}

GraphContract Manifest::target_contract() const {
  return runtime::target_contract(model.num_layers, model.num_kv_heads, model.head_dim, model.hidden_size, model.vocab_size,
                                  static_cast<int64_t>(draft.feature_layers.size()));
}

GraphContract Manifest::draft_contract() const {
  return runtime::draft_contract(draft.num_kv_heads, draft.head_dim, model.hidden_size, draft.nodes,
                                 static_cast<int64_t>(draft.feature_layers.size()), draft.num_layers);
}

void check_sizes(const Manifest& manifest, const fs::path& directory) {
  for (const auto& [graph, name] : manifest.graphs) {
    if (manifest.files.count(name) == 0) {
      throw EngineError((directory / kName).string() + " names the graph " + name + " but does not list it; " + kExportAgain +
                        ".");
    }
  }
  for (const auto& [name, expected] : manifest.files) {
    if (name.rfind("tensorrt/", 0) == 0) continue;  // engines for GPUs, which are not opened here
    const fs::path path = directory / name;
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (status.type() == fs::file_type::not_found) {
      throw EngineError("The engine at " + directory.string() + " has no file " + name + "; " + kExportAgain + ".");
    }
    if (status.type() != fs::file_type::regular) throw EngineError(path.string() + " is no regular file; " + kExportAgain + ".");
    const auto bytes = static_cast<int64_t>(fs::file_size(path, error));
    if (error || bytes != expected) {
      throw EngineError(path.string() + " has " + std::to_string(bytes) + " bytes, but " + std::to_string(expected) +
                        " were exported: it was changed or cut; " + kExportAgain + ".");
    }
  }
}

}  // namespace jakiro::runtime
