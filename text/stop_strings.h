#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace conclave {

// Cuts a stream of text before the first stop string that completes in it; of those that complete
// at the same byte, the longest. Text that may be the start of a stop string is held back. The
// result does not depend on how the text was cut. O(text * number of strings).
class StopStrings {
 public:
  // Empty strings are ignored.
  explicit StopStrings(const std::vector<std::string>& stops);

  // Text that can be sent now; nothing more once stopped().
  std::string Push(absl::string_view text);
  // The end of the text: what was held back.
  std::string Flush();

  bool stopped() const { return stopped_; }
  // The stop string that was met; empty if none.
  const std::string& matched() const { return matched_; }

 private:
  struct Matcher {
    std::string stop;
    std::vector<size_t> fallback;  // Knuth-Morris-Pratt: longest border of each prefix
    size_t matched = 0;            // bytes of `stop` that the text's end equals
  };
  std::vector<Matcher> matchers_;
  std::string held_;
  bool stopped_ = false;
  std::string matched_;
};

}  // namespace conclave
