#include "bundle.h"

#include "errors.h"

namespace jakiro::runtime {

std::shared_ptr<const Bundle> Bundle::open(const std::filesystem::path& directory, const BackendOptions& options) {
  const Manifest manifest = Manifest::read(directory);
  check_sizes(manifest, directory);
  const LoadedGraphs loaded = open_graphs(directory, manifest, options);
  const auto check = [&](const GraphContract& contract, const Graph& graph) {
    if (const auto difference = contract.difference(graph)) {
      throw EngineError("The " + contract.name + " graph of " + directory.string() +
                        " is not what engine.json says: " + *difference + "; " + kExportAgain + ".");
    }
  };
  check(manifest.target_contract(), *loaded.target);
  check(manifest.draft_contract(), *loaded.draft);
  return std::make_shared<const Bundle>(Bundle{manifest, loaded.target, loaded.draft});
}

}  // namespace jakiro::runtime
