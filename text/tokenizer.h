#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "text/vocabulary.h"

namespace conclave {

// What becomes of an added token's content ("<|im_end|>", "<think>") found in a text to encode.
enum class AddedTokens {
  kMatch,  // its one id: for rendered prompts
  kPlain,  // ordinary characters, so that a user's text can never hold a control token
};

// Qwen3's tokenizer: added tokens, NFC, the Qwen split pattern, byte-level BPE. Equal to Hugging
// Face's engine id for id. Immutable to its callers and safe to use from any number of threads.
class Tokenizer {
 public:
  // Reads model_dir/tokenizer.json. NotFound if there is none, DataLoss if it is broken,
  // FailedPrecondition naming the field if it describes another kind of tokenizer.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& model_dir);
  ~Tokenizer();

  // Adds nothing before or after. InvalidArgument naming the byte offset if the text is not valid
  // UTF-8.
  absl::StatusOr<std::vector<uint32_t>> Encode(absl::string_view utf8_text,
                                               AddedTokens mode = AddedTokens::kMatch) const;

  // The text of `ids`; always valid UTF-8: what is not comes out as U+FFFD, one per maximal
  // subpart. Ids that no token has are skipped. Note that Decode(Encode(text)) is NFC(text).
  std::string Decode(absl::Span<const uint32_t> ids, bool skip_special) const;

  const Vocabulary& vocabulary() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave
