// However an answer is cut, the calls and the content are the same, and nothing is lost.
#include <string>
#include <vector>

#include "common/check.h"
#include "tests/fuzz/byte_source.h"
#include "text/json_text.h"
#include "text/tool_call_parser.h"

namespace conclave {
namespace {

struct Parsed {
  std::string order;  // text and calls as they came, the texts between two calls joined
  std::string content;
  int num_calls = 0;
};

void Add(const std::vector<ToolCallEvent>& events, Parsed* parsed) {
  for (const ToolCallEvent& event : events) {
    if (event.kind == ToolCallEvent::Kind::kContent) {
      CHECK(!event.content.empty());
      parsed->content += event.content;
      parsed->order += event.content;
      continue;
    }
    CHECK_EQ(event.index, parsed->num_calls);
    ++parsed->num_calls;
    CHECK(!event.name.empty());
    const auto arguments = ParseJson(event.arguments);
    CHECK(arguments.ok() && arguments->is_object()) << event.arguments;
    parsed->order += '\x01' + event.name + '\x02' + event.arguments + '\x03';
  }
}

Parsed Parse(const std::vector<std::string>& pieces) {
  ToolCallParser parser;
  Parsed parsed;
  for (const std::string& piece : pieces) Add(parser.Push(piece), &parsed);
  Add(parser.Finish(), &parsed);
  CHECK_EQ(parser.num_calls(), parsed.num_calls);
  return parsed;
}

}  // namespace
}  // namespace conclave

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace conclave;
  ByteSource source(data, size);
  const uint32_t seed = source.Byte();
  const std::string text(source.Rest());
  const Parsed whole = Parse({text});
  CHECK(Parse(CutAnywhere(text, seed)).order == whole.order);
  std::vector<std::string> bytes;
  for (const char c : text) bytes.emplace_back(1, c);
  CHECK(Parse(bytes).order == whole.order);
  if (whole.num_calls == 0) CHECK(whole.content == text);
  return 0;
}
