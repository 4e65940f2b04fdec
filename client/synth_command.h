#pragma once

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace conclave {

struct SynthOptions {
  std::string config_name;  // a name of KnownModelNames(), "tiny-dense" or "tiny-moe"
  int num_layers = 0;       // 0: all of the model's
  std::string out_dir;
  uint64_t seed = 1;
};

// `conclave synth`: writes a checkpoint with random weights and a known model's shape, cut to its
// first num_layers layers, for tests and benchmarks without the real weights. `progress` is
// called from the calling thread with bytes written and to write.
// NotFound: unknown config_name. InvalidArgument: num_layers is not within the model's, or no
// out_dir. Otherwise the errors of WriteSyntheticCheckpoint.
absl::Status RunSynth(const SynthOptions& options,
                      absl::FunctionRef<void(int64_t done, int64_t total)> progress);

}  // namespace conclave
