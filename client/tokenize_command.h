#pragma once

#include <istream>
#include <ostream>
#include <string>

#include "absl/status/status.h"

namespace conclave {

struct TokenizeOptions {
  std::string model_dir;  // only tokenizer.json is read
  bool plain = false;     // the contents of added tokens are ordinary text
  bool decode = false;    // ids to text instead
};

// `conclave tokenize`: one JSON object a line. {"text"} gives {"ids"}; with decode {"ids"} gives
// {"text", "pieces", "flush"}, where pieces[i] is what a stream sends at id i and flush what it
// sends at the end. A bad line gives {"error"}, naming its number; the others are still answered
// and InvalidArgument says how many were bad. Empty lines are passed over.
absl::Status RunTokenize(const TokenizeOptions& options, std::istream& in, std::ostream& out);

}  // namespace conclave
