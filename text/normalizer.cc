#include "text/normalizer.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "text/unicode_properties.h"
#include "text/utf8.h"

namespace conclave {
namespace {

// Hangul syllables are composed and decomposed by arithmetic (Unicode Standard, 3.12).
constexpr char32_t kHangulBase = 0xAC00, kHangulEnd = 0xD7A4;
constexpr char32_t kLeadBase = 0x1100, kVowelBase = 0x1161, kTailBase = 0x11A7;
constexpr char32_t kNumLeads = 19, kNumVowels = 21, kNumTails = 28;

char32_t Compose(const UnicodeProperties& unicode, char32_t first, char32_t second) {
  if (first - kLeadBase < kNumLeads && second - kVowelBase < kNumVowels) {
    return kHangulBase + ((first - kLeadBase) * kNumVowels + (second - kVowelBase)) * kNumTails;
  }
  if (first >= kHangulBase && first < kHangulEnd && (first - kHangulBase) % kNumTails == 0 &&
      second > kTailBase && second < kTailBase + kNumTails) {
    return first + (second - kTailBase);
  }
  return unicode.Composition(first, second);
}

void AppendDecomposed(const UnicodeProperties& unicode, char32_t code_point,
                      std::vector<char32_t>* out) {
  if (code_point >= kHangulBase && code_point < kHangulEnd) {
    const char32_t index = code_point - kHangulBase;
    out->push_back(kLeadBase + index / (kNumVowels * kNumTails));
    out->push_back(kVowelBase + index % (kNumVowels * kNumTails) / kNumTails);
    if (index % kNumTails != 0) out->push_back(kTailBase + index % kNumTails);
    return;
  }
  const absl::Span<const char32_t> parts = unicode.Decomposition(code_point);
  if (parts.empty()) {
    out->push_back(code_point);
  } else {
    out->insert(out->end(), parts.begin(), parts.end());
  }
}

// Puts each run of marks into the order of their combining classes, keeping equals in place.
void OrderMarks(const UnicodeProperties& unicode, std::vector<char32_t>* text) {
  const auto combining_class = [&unicode](char32_t c) { return unicode.Of(c).combining_class(); };
  for (auto it = text->begin(); it != text->end();) {
    if (combining_class(*it) == 0) {
      ++it;
      continue;
    }
    const auto end =
        std::find_if(it, text->end(), [&](char32_t c) { return combining_class(c) == 0; });
    std::stable_sort(
        it, end, [&](char32_t a, char32_t b) { return combining_class(a) < combining_class(b); });
    it = end;
  }
}

// Joins each starter with the marks and starters after it that are not blocked, in place.
void ComposeInPlace(const UnicodeProperties& unicode, std::vector<char32_t>* text) {
  size_t length = 0;
  size_t starter = SIZE_MAX;
  int last_class = 0;  // of what was kept after the starter
  for (const char32_t code_point : *text) {
    const int combining_class = unicode.Of(code_point).combining_class();
    if (starter != SIZE_MAX && (last_class == 0 || last_class < combining_class)) {
      const char32_t composed = Compose(unicode, (*text)[starter], code_point);
      if (composed != 0) {
        (*text)[starter] = composed;
        continue;
      }
    }
    if (combining_class == 0) starter = length;
    last_class = combining_class;
    (*text)[length++] = code_point;
  }
  text->resize(length);
}

// Where a text stops being known to be normal.
struct QuickCheck {
  size_t boundary = 0;  // what is before it is normal and does not interact with what follows
  bool normal = true;   // the whole text is
};

QuickCheck CheckNormal(const UnicodeProperties& unicode, absl::string_view text, size_t begin) {
  QuickCheck check;
  check.boundary = begin;
  int last_class = 0;
  for (size_t i = begin; i < text.size();) {
    if (static_cast<uint8_t>(text[i]) < 0x80) {
      uint64_t word;
      while (i + 9 <= text.size() && (std::memcpy(&word, text.data() + i, 8), true) &&
             (word & 0x8080808080808080u) == 0) {
        i += 8;
      }
      if (static_cast<uint8_t>(text[i]) < 0x80) {
        check.boundary = i++;
        last_class = 0;
        continue;
      }
      check.boundary = i - 1;  // the last of the ASCII characters
      last_class = 0;
    }
    const CodePoint code_point = DecodeValidUtf8(text.substr(i));
    const CharProperties properties = unicode.Of(code_point.value);
    const int combining_class = properties.combining_class();
    if (properties.nfc_suspect() || (combining_class != 0 && combining_class < last_class)) {
      check.normal = false;
      return check;
    }
    if (combining_class == 0) check.boundary = i;
    last_class = combining_class;
    i += static_cast<size_t>(code_point.num_bytes);
  }
  check.boundary = text.size();
  return check;
}

}  // namespace

absl::string_view NormalizeNfc(absl::string_view text, std::string* scratch) {
  const UnicodeProperties& unicode = UnicodeProperties::Get();
  QuickCheck check = CheckNormal(unicode, text, 0);
  if (check.normal) return text;
  scratch->clear();
  std::vector<char32_t> part;
  size_t done = 0;
  while (true) {
    scratch->append(text.data() + done, check.boundary - done);
    done = check.boundary;
    if (check.normal) return *scratch;
    // From the boundary to the next character that nothing before it can touch.
    part.clear();
    bool is_first = true;
    while (done < text.size()) {
      const CodePoint code_point = DecodeValidUtf8(text.substr(done));
      const CharProperties properties = unicode.Of(code_point.value);
      if (!is_first && properties.combining_class() == 0 && !properties.nfc_suspect()) break;
      is_first = false;
      AppendDecomposed(unicode, code_point.value, &part);
      done += static_cast<size_t>(code_point.num_bytes);
    }
    OrderMarks(unicode, &part);
    ComposeInPlace(unicode, &part);
    for (const char32_t code_point : part) AppendUtf8(code_point, scratch);
    check = CheckNormal(unicode, text, done);
  }
}

}  // namespace conclave
