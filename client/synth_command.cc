#include "client/synth_command.h"

#include <algorithm>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/input_files.h"
#include "common/errors.h"
#include "common/status_macros.h"
#include "model/known_models.h"
#include "model/synthetic.h"

namespace conclave {
namespace {

absl::StatusOr<Qwen3Config> ConfigOf(const SynthOptions& options) {
  Qwen3Config config;
  if (options.config_name == "tiny-dense") {
    config = TinyDenseConfig();
  } else if (options.config_name == "tiny-moe") {
    config = TinyMoeConfig();
  } else if (absl::EndsWith(options.config_name, ".json")) {
    ASSIGN_OR_RETURN(const std::string json, ReadInput(options.config_name));
    ASSIGN_OR_RETURN(config, ParseQwen3Config(json));
  } else {
    ASSIGN_OR_RETURN(config, KnownModel(options.config_name));
  }
  if (options.num_layers < 0 || options.num_layers > config.num_hidden_layers) {
    return errors::OutOfRange("--layers", options.num_layers,
                              absl::StrCat("1..", config.num_hidden_layers, ", or 0 for all"));
  }
  if (options.num_layers > 0) config.num_hidden_layers = options.num_layers;
  return config;
}

}  // namespace

absl::Status RunSynth(const SynthOptions& options,
                      absl::FunctionRef<void(int64_t done, int64_t total)> progress) {
  if (options.out_dir.empty()) return errors::OutOfRange("--out", "\"\"", "a directory");
  ASSIGN_OR_RETURN(const Qwen3Config config, ConfigOf(options));
  SyntheticOptions synthetic;
  synthetic.seed = options.seed;
  synthetic.num_threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  synthetic.progress = [&](int64_t done, int64_t total) { progress(done, total); };
  return WriteSyntheticCheckpoint(config, options.out_dir, synthetic);
}

}  // namespace conclave
