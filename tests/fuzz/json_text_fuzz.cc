// JSON text that is read and written is JSON text of the same value, and what is JSON is not our
// opinion: nlohmann's reader agrees, but for what each is documented to do differently.
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "common/check.h"
#include "nlohmann/json.hpp"
#include "text/json_text.h"
#include "text/utf8.h"

namespace conclave {
namespace {

// Also if a number in it is past a double's range, which nlohmann's reader refuses and ours keeps.
bool IsJsonForNlohmann(const std::string& text) {
  try {
    return !nlohmann::json::parse(text).is_discarded();
  } catch (const nlohmann::json::out_of_range&) {
    return true;
  } catch (const nlohmann::json::exception&) {
    return false;
  }
}

// That reader skips a byte order mark and takes a NUL for the end.
bool ReadsAlike(absl::string_view text) {
  return !absl::StartsWith(text, "\xef\xbb\xbf") && !absl::StrContains(text, '\0');
}

}  // namespace
}  // namespace conclave

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace conclave;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto value = ParseJson(text);
  if (!value.ok()) {
    const std::string message(value.status().message());
    CHECK_EQ(ValidUtf8Prefix(message), message.size()) << message;
    if (ReadsAlike(text) && nlohmann::json::accept(text)) {
      CHECK(absl::StrContains(message, "levels")) << message;  // of nesting: ours is bounded
    }
    return 0;
  }
  const std::string written = ToJson(*value, NumberSpelling::kAsWritten);
  const auto again = ParseJson(written);
  CHECK(again.ok()) << again.status();
  CHECK(ToJson(*again, NumberSpelling::kAsWritten) == written);
  CHECK(ToJson(*again) == ToJson(*value));
  if (ReadsAlike(text)) CHECK(IsJsonForNlohmann(text)) << written;
  return 0;
}
