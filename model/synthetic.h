#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "model/qwen3_config.h"
#include "model/safetensors.h"

namespace conclave {

// Models small enough for a unit test: 2 layers, hidden_size 64, head_dim 16, 320 ids (256 bytes,
// 26 added tokens, padding). The MoE has 8 experts of width 32, 2 a token.
Qwen3Config TinyDenseConfig();
Qwen3Config TinyMoeConfig();

struct SyntheticOptions {
  uint64_t seed = 1;
  // How unquantized weights are stored: kBF16, kF16 or kF32.
  DType dtype = DType::kBF16;
  // A part is closed before a tensor that would take it past this. One tensor may be larger.
  int64_t max_part_bytes = 2'000'000'000;
  int num_threads = 1;
  // Called now and then from the calling thread, and once at the end with both equal.
  std::function<void(int64_t bytes_done, int64_t bytes_total)> progress;  // may be empty
};

// Writes a model with random weights that a server of Qwen3 loads like any other: config.json,
// generation_config.json, tokenizer.json, tokenizer_config.json (Qwen3's chat template) and the
// weights in one file or in parts with an index; FP8 blocks if config.quantization says so.
// Equal arguments give equal bytes, whatever num_threads is. Weights are uniform with standard
// deviation 1 / sqrt(in_features) (0.02 at 2,048, Qwen3's own initializer_range), so that
// activations and logits stay near 1; norms are within 0.2 of 1.
//
// The tokenizer is of Qwen3's kind. Added tokens have their real ids (151643..151668) if
// vocab_size >= 151669, and the ids between the bytes and them are made-up letter groups with
// their merges; otherwise they follow the 256 bytes at 256..281 and there are no merges.
//
// InvalidArgument: a config that cannot be served, or vocab_size below 282. AlreadyExists: `dir`
// is not empty. ResourceExhausted: disk full, with what was wanted. PermissionDenied or Internal:
// another failure of the file system. After an error nothing that was written is left.
absl::Status WriteSyntheticCheckpoint(const Qwen3Config& config, const std::string& dir,
                                      const SyntheticOptions& options = {});

// Bytes of weights that WriteSyntheticCheckpoint writes.
int64_t SyntheticWeightBytes(const Qwen3Config& config, DType dtype);

}  // namespace conclave
