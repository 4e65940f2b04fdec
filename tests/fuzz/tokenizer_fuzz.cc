// Text to ids and back; ids to text at once and one by one. With the demo model's tokenizer.
#include <cstdint>
#include <string>
#include <vector>

#include "common/check.h"
#include "tests/fuzz/byte_source.h"
#include "text/normalizer.h"
#include "text/reasoning_splitter.h"
#include "text/stream_decoder.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

namespace conclave {
namespace {

const Tokenizer& DemoTokenizer() {
  static const Tokenizer* const tokenizer = [] {
    auto loaded = Tokenizer::Load(CONCLAVE_SOURCE_DIR "/models/demo");
    CHECK(loaded.ok()) << loaded.status();
    return loaded->release();
  }();
  return *tokenizer;
}

std::string Nfc(absl::string_view text) {
  std::string scratch;
  return std::string(NormalizeNfc(text, &scratch));
}

// Whatever the ids, a stream shows what Decode gives, in whole characters, and the splitter loses
// none of it but newlines and marks.
void CheckDecoding(const std::vector<uint32_t>& ids, bool skip_special) {
  const Vocabulary& vocabulary = DemoTokenizer().vocabulary();
  StreamDecoder decoder(&vocabulary, skip_special);
  ReasoningSplitter splitter(vocabulary, /*start_inside=*/false);
  std::string streamed, split;
  const auto add = [&](const std::string& piece, const SplitText& parts) {
    CHECK_EQ(ValidUtf8Prefix(piece), piece.size());
    CHECK(parts.thinking.empty() || parts.answer.empty());
    streamed += piece;
    split += parts.thinking + parts.answer;
  };
  for (const uint32_t id : ids) {
    const std::string piece = decoder.Push(id);
    add(piece, splitter.Push(id, piece));
  }
  const std::string tail = decoder.Flush();
  add(tail, splitter.Flush(tail));
  CHECK(streamed == DemoTokenizer().Decode(ids, skip_special));
  CHECK_EQ(ValidUtf8Prefix(split), split.size());
  CHECK_LE(split.size(), streamed.size());
}

void CheckText(const std::string& text) {
  const Tokenizer& tokenizer = DemoTokenizer();
  const auto matched = tokenizer.Encode(text, AddedTokens::kMatch);
  const auto plain = tokenizer.Encode(text, AddedTokens::kPlain);
  const bool valid = ValidUtf8Prefix(text) == text.size();
  CHECK_EQ(matched.ok(), valid);
  CHECK_EQ(plain.ok(), valid);
  if (!valid) return;
  for (const uint32_t id : *plain) {
    CHECK_LT(id, tokenizer.vocabulary().size());
    CHECK(!tokenizer.vocabulary().IsAdded(id)) << "text became a control token";
  }
  CHECK(tokenizer.Decode(*plain, false) == Nfc(text));
  // Between added tokens each text is normal by itself, so that the whole may not be.
  CHECK(Nfc(tokenizer.Decode(*matched, false)) == Nfc(text));
  CheckDecoding(*matched, /*skip_special=*/false);
  CheckDecoding(*plain, /*skip_special=*/true);
}

}  // namespace
}  // namespace conclave

// The first byte says what the others are: ids of two bytes each, or text.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace conclave;
  ByteSource source(data, size);
  const uint8_t kind = source.Byte();
  if (kind % 4 == 0) {
    std::vector<uint32_t> ids;
    while (!source.empty()) ids.push_back(source.Below(1 << 16) % 3000);
    CheckDecoding(ids, kind % 8 == 0);
  } else {
    CheckText(std::string(source.Rest()));
  }
  return 0;
}
