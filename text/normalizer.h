#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace conclave {

// NFC as the reference engine computes it, with the data of Unicode 9.0: marks that came later have
// combining class 0 there, so a current library gives another result on rare texts.
// `text` must be valid UTF-8. Returns `text` itself if it is normal already (the usual case, found
// in one pass without allocation), else a view of `*scratch`, which is overwritten.
absl::string_view NormalizeNfc(absl::string_view text, std::string* scratch);

}  // namespace conclave
