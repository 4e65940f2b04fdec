#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "text/byte_pair_encoder.h"
#include "text/vocabulary.h"

namespace conclave {

// What a tokenizer.json holds, once it is known to describe a tokenizer of Qwen3's kind.
struct TokenizerFile {
  Vocabulary vocabulary;
  std::vector<Merge> merges;           // in order of rank
  std::array<uint32_t, 256> byte_ids;  // the token that is this byte alone
};

// NotFound, DataLoss naming what is broken, or FailedPrecondition naming the field that is not as
// Qwen3 has it.
absl::StatusOr<TokenizerFile> LoadTokenizerFile(const std::string& path);

}  // namespace conclave
