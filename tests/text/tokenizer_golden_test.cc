// Qwen3's tokenizer against the ids, texts and pieces of Hugging Face's engine.
#include <gtest/gtest.h>

#include <map>
#include <thread>

#include "tests/support/status_matchers.h"
#include "tests/text/text_test_data.h"
#include "text/normalizer.h"
#include "text/stream_decoder.h"
#include "text/utf8.h"

namespace conclave {
namespace {

using testing::ElementsAre;

void ExpectEncodes(const std::string& file, AddedTokens mode, size_t num_records) {
  const Tokenizer& tokenizer = Qwen3Tokenizer();
  const std::vector<JsonValue> records = ReadDataRecords(file);
  EXPECT_EQ(records.size(), num_records);
  for (const JsonValue& record : records) {
    ASSERT_OK_AND_ASSIGN(const std::vector<uint32_t> ids,
                         tokenizer.Encode(StringAt(record, "text"), mode));
    EXPECT_EQ(ids, IdsAt(record)) << ToJson(record);
  }
}

TEST(TokenizerGoldenTest, EncodesAsTheReference) {
  ExpectEncodes("golden/golden_dev.jsonl", AddedTokens::kMatch, 809);
}

TEST(TokenizerGoldenTest, EncodesUserTextWithoutControlTokens) {
  ExpectEncodes("golden/plain_dev.jsonl", AddedTokens::kPlain, 39);
}

TEST(TokenizerGoldenTest, EncodesTheSameAgainFromAWarmCacheAndInManyThreads) {
  const Tokenizer& tokenizer = Qwen3Tokenizer();
  const std::vector<JsonValue> records = ReadDataRecords("golden/golden_dev.jsonl");
  std::vector<std::thread> threads;
  std::vector<int> num_wrong(4, 0);
  for (size_t t = 0; t < num_wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < 2 * records.size(); ++i) {
        const JsonValue& record = records[(i * (t + 1)) % records.size()];
        const auto ids = tokenizer.Encode(StringAt(record, "text"));
        if (!ids.ok() || *ids != IdsAt(record)) ++num_wrong[t];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(num_wrong, ElementsAre(0, 0, 0, 0));
}

TEST(TokenizerGoldenTest, DecodesToTheNormalizedText) {
  const Tokenizer& tokenizer = Qwen3Tokenizer();
  for (const JsonValue& record : ReadDataRecords("golden/golden_dev.jsonl")) {
    bool differs = false;  // normalised apart on both sides of an added token
    if (const JsonValue* flags = record.Find("flags"); flags != nullptr) {
      for (const JsonValue& flag : flags->items()) {
        differs |= flag.string_value() == "decode_differs";
      }
    }
    std::string scratch;
    const absl::string_view normal = NormalizeNfc(StringAt(record, "text"), &scratch);
    const std::string decoded = tokenizer.Decode(IdsAt(record), /*skip_special=*/false);
    EXPECT_EQ(decoded != normal, differs) << ToJson(record);
  }
}

TEST(TokenizerGoldenTest, DecodesAndStreamsAsTheReference) {
  const Tokenizer& tokenizer = Qwen3Tokenizer();
  const std::vector<JsonValue> records = ReadDataRecords("golden/detok_dev.jsonl");
  EXPECT_EQ(records.size(), 50u);
  for (const JsonValue& record : records) {
    const std::vector<uint32_t> ids = IdsAt(record);
    EXPECT_EQ(tokenizer.Decode(ids, false), StringAt(record, "decoded")) << ToJson(record);
    EXPECT_EQ(tokenizer.Decode(ids, true), StringAt(record, "decoded_skip_special"));
    StreamDecoder decoder(&tokenizer.vocabulary());
    std::vector<std::string> pieces, wanted;
    for (const uint32_t id : ids) pieces.push_back(decoder.Push(id));
    for (const JsonValue& piece : record.Find("pieces")->items()) {
      wanted.push_back(piece.string_value());
    }
    EXPECT_EQ(pieces, wanted) << ToJson(record);
    EXPECT_EQ(decoder.Flush(), StringAt(record, "flush")) << ToJson(record);
    EXPECT_EQ(decoder.Flush(), "") << "the end comes once";
  }
}

// Every token that is text by itself encodes to itself, but for those that the split pattern or
// normalisation takes apart.
TEST(TokenizerGoldenTest, SweepsTheVocabulary) {
  const Tokenizer& tokenizer = Qwen3Tokenizer();
  const Vocabulary& vocabulary = tokenizer.vocabulary();
  std::map<uint32_t, std::vector<uint32_t>> exceptions;
  for (const JsonValue& record : ReadDataRecords("golden/vocab_sweep_exceptions.jsonl")) {
    const uint32_t id = static_cast<uint32_t>(std::stoul(record.Find("id")->number_spelling()));
    exceptions[id] = IdsAt(record);
    EXPECT_EQ(vocabulary.Bytes(id), StringAt(record, "text"));
  }
  EXPECT_EQ(exceptions.size(), 1909u);
  int num_texts = 0;
  for (uint32_t id = 0; id < vocabulary.size(); ++id) {
    const absl::string_view bytes = vocabulary.Bytes(id);
    if (vocabulary.IsAdded(id) || ValidUtf8Prefix(bytes) != bytes.size()) continue;
    ++num_texts;
    ASSERT_OK_AND_ASSIGN(const std::vector<uint32_t> ids, tokenizer.Encode(bytes));
    const auto it = exceptions.find(id);
    EXPECT_EQ(ids, it == exceptions.end() ? std::vector<uint32_t>{id} : it->second) << id;
  }
  EXPECT_EQ(num_texts, 150195);
}

TEST(TokenizerGoldenTest, KnowsTheVocabulary) {
  const Vocabulary& vocabulary = Qwen3Tokenizer().vocabulary();
  EXPECT_EQ(vocabulary.size(), 151669u);
  EXPECT_EQ(vocabulary.added_tokens().size(), 26u);
  EXPECT_EQ(vocabulary.IdOfAdded("</think>"), 151668u);
  EXPECT_EQ(vocabulary.IdOfAdded("<|im_end|>"), 151645u);
  EXPECT_EQ(vocabulary.IdOfAdded("think"), std::nullopt);
  EXPECT_TRUE(vocabulary.IsAdded(151668));
  EXPECT_FALSE(vocabulary.IsSpecial(151668)) << "it stays in text decoded with skip_special";
  EXPECT_TRUE(vocabulary.IsSpecial(151645));
  EXPECT_EQ(vocabulary.Bytes(151645), "<|im_end|>");
  EXPECT_EQ(vocabulary.Bytes(220), " ");
  EXPECT_EQ(vocabulary.Bytes(188), absl::string_view("\0", 1));
  // Rows of the padded embedding and ids beyond it have no bytes.
  EXPECT_EQ(vocabulary.Bytes(151669), "");
  EXPECT_EQ(vocabulary.Bytes(151935), "");
  EXPECT_EQ(vocabulary.Bytes(UINT32_MAX), "");
  EXPECT_FALSE(vocabulary.IsSpecial(151935));
  EXPECT_EQ(Qwen3Tokenizer().Decode({151669, 9707, UINT32_MAX}, false), "Hello");
}

TEST(TokenizerGoldenTest, TheEarlyStopTextIs24Tokens) {
  ASSERT_OK_AND_ASSIGN(
      const std::vector<uint32_t> ids,
      Qwen3Tokenizer().Encode("\n\nConsidering the limited time by the user, I have to give the "
                              "solution based on the thinking directly now.\n</think>\n\n"));
  EXPECT_EQ(ids.size(), 24u);
  EXPECT_EQ(ids.front(), 271u);
  EXPECT_EQ(ids[22], 151668u);
}

TEST(TokenizerGoldenTest, LongPretokensTakeTheHeap) {
  const Tokenizer& tokenizer = Qwen3Tokenizer();
  // One pretoken of 100,000 letters; "aaaaaaaa" is one token.
  const std::string text(100000, 'a');
  ASSERT_OK_AND_ASSIGN(const std::vector<uint32_t> ids, tokenizer.Encode(text));
  EXPECT_EQ(tokenizer.Decode(ids, false), text);
  EXPECT_LT(ids.size(), text.size() / 7);
}

TEST(TokenizerGoldenTest, RefusesInvalidUtf8) {
  EXPECT_THAT(Qwen3Tokenizer().Encode("abc\xC0\x80"),
              StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("at byte 3 of 5")));
  EXPECT_THAT(Qwen3Tokenizer().Encode("\xED\xA0\x80"),  // a surrogate
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_OK(Qwen3Tokenizer().Encode(absl::string_view("\0", 1)));
  ASSERT_OK_AND_ASSIGN(const std::vector<uint32_t> none, Qwen3Tokenizer().Encode(""));
  EXPECT_TRUE(none.empty());
}

}  // namespace
}  // namespace conclave
