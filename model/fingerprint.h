#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "model/qwen3_config.h"
#include "model/safetensors.h"

namespace conclave {

// ModelInfo.fingerprint: 32 hex digits of SHA-256 over the config and, for each weight that the
// config implies, name, dtype, shape, and three samples of 64 bytes (start, middle, end). It does
// not depend on how the checkpoint is cut into parts, nor on what the process goes on to load, so
// the worker and every shard of one model agree. It tells checkpoints apart that were trained
// apart; it is no protection against somebody who changes single bytes on purpose.
// Reads about two pages a weight: 37,000 weights of the largest model in a few seconds from a
// cold disk. Errors: those of CheckCatalog.
absl::StatusOr<std::string> Fingerprint(const Checkpoint& checkpoint, const Qwen3Config& config);

// Of made-up weights (--load_format=dummy), which depend on the config alone.
std::string DummyFingerprint(const Qwen3Config& config);

}  // namespace conclave
