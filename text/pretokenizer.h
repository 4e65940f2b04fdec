#pragma once

#include <cstddef>

#include "absl/strings/string_view.h"
#include "text/unicode_properties.h"

namespace conclave {

// The split pattern of Qwen2 and Qwen3, as tokenizer.json spells it.
inline constexpr absl::string_view kQwenSplitPattern =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

// Bytes of the first match of that pattern in `text`, which must be valid UTF-8 and not empty, and
// must go on to the end of the text that is split (whitespace at the end is treated apart).
// Every match starts where the last one ended, so calling this repeatedly splits a text.
size_t PretokenLength(const UnicodeProperties& unicode, absl::string_view text);

}  // namespace conclave
