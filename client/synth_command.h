#pragma once

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace conclave {

struct SynthOptions {
  // A name of KnownModelNames(), "tiny-dense" or "tiny-moe", or a config.json.
  std::string config_name;
  int num_layers = 0;  // 0: all of the model's
  std::string out_dir;
  uint64_t seed = 1;
};

// `conclave synth`: writes a checkpoint with random weights and a known model's shape, cut to its
// first num_layers layers, for tests and benchmarks without the real weights. `progress` is
// called from the calling thread with bytes written and to write.
// NotFound: unknown config_name. The errors of reading a config.json. InvalidArgument: num_layers
// is not within the model's, or no out_dir. Otherwise the errors of WriteSyntheticCheckpoint.
absl::Status RunSynth(const SynthOptions& options,
                      absl::FunctionRef<void(int64_t done, int64_t total)> progress);

}  // namespace conclave
