#pragma once

#include <map>
#include <string>

#include "absl/status/status.h"
#include "text/vocabulary.h"

namespace conclave {

// Collects the tokens of a file in any order.
class VocabularyBuilder {
 public:
  // InvalidArgument if the id is too large, or taken by a token with other bytes.
  absl::Status Add(uint32_t id, std::string bytes);
  absl::Status AddAdded(AddedToken token);
  Vocabulary Build() &&;

 private:
  std::vector<std::string> bytes_;
  std::vector<uint8_t> flags_;
  std::map<uint32_t, AddedToken> added_;
};

}  // namespace conclave
