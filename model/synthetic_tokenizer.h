#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace conclave {

// tokenizer.json and tokenizer_config.json of a synthetic model; see model/synthetic.h for the
// ids that its vocabulary has.
struct SyntheticTokenizer {
  std::string tokenizer_json;
  std::string tokenizer_config_json;
  int32_t im_end_id = 0;     // <|im_end|>, ends a turn
  int32_t endoftext_id = 0;  // <|endoftext|>, ends a text
};

// InvalidArgument if vocab_size is below 282, which 256 bytes and 26 added tokens take.
absl::StatusOr<SyntheticTokenizer> MakeSyntheticTokenizer(int vocab_size);

}  // namespace conclave
