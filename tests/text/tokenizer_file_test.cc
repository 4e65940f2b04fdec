// Tokenizers other than Qwen3's own: small ones, broken ones and ones of another kind.
#include "text/tokenizer_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "nlohmann/json.hpp"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"
#include "tests/text/text_test_data.h"
#include "text/pretokenizer.h"
#include "text/utf8.h"

namespace conclave {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

class TokenizerFileTest : public testing::Test {
 protected:
  // A tokenizer with the 256 bytes as ids 0..255 and three merges, whose ids are not in order of
  // rank: "ab" is 257, "bc" is 256, "abc" is 258; and two added tokens.
  static json SmallTokenizer() {
    json vocab;
    std::string unused;
    char32_t next = 0x100;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool is_printable = (byte >= 33 && byte < 127) || (byte >= 161 && byte != 173);
      std::string text;
      AppendUtf8(is_printable ? char32_t{byte} : next++, &text);
      vocab[text] = byte;
    }
    vocab["ab"] = 257;
    vocab["bc"] = 256;
    vocab["abc"] = 258;
    return {
        {"model",
         {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"byte_fallback", false},
          {"ignore_merges", false},
          {"vocab", vocab},
          {"merges", {"b c", "a b", "a bc"}}}},
        {"normalizer", {{"type", "NFC"}}},
        {"pre_tokenizer",
         {{"type", "Sequence"},
          {"pretokenizers",
           {{{"type", "Split"},
             {"pattern", {{"Regex", std::string(kQwenSplitPattern)}}},
             {"behavior", "Isolated"},
             {"invert", false}},
            {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}}},
        {"decoder", {{"type", "ByteLevel"}}},
        {"post_processor", nullptr},
        {"added_tokens",
         {{{"id", 300}, {"content", "<|end|>"}, {"special", true}},
          {{"id", 301}, {"content", "[x]"}, {"special", false}, {"lstrip", false}}}},
    };
  }

  void Write(const std::string& text) { dir_.Write("tokenizer.json", text); }
  absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const json& root) {
    Write(root.dump());
    return Tokenizer::Load(dir_.path());
  }
  std::string path() const { return dir_.File("tokenizer.json"); }

  const TempDir dir_;
};

TEST_F(TokenizerFileTest, LoadsASmallTokenizer) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Tokenizer> tokenizer, Load(SmallTokenizer()));
  EXPECT_EQ(tokenizer->vocabulary().size(), 302u);
  EXPECT_EQ(tokenizer->vocabulary().Bytes(280), "") << "no token has this id";
  // "b c" goes before "a b", and then "a bc" applies.
  ASSERT_OK_AND_ASSIGN(std::vector<uint32_t> ids, tokenizer->Encode("abc"));
  EXPECT_THAT(ids, ElementsAre(258));
  ASSERT_OK_AND_ASSIGN(ids, tokenizer->Encode("abd"));
  EXPECT_THAT(ids, ElementsAre(257, 'd'));
  // Added tokens that start with different bytes; the unfinished ones are text.
  ASSERT_OK_AND_ASSIGN(ids, tokenizer->Encode("[x][<|end|><"));
  EXPECT_THAT(ids, ElementsAre(301, '[', 300, '<'));
  ASSERT_OK_AND_ASSIGN(ids, tokenizer->Encode("[x]", AddedTokens::kPlain));
  EXPECT_THAT(ids, ElementsAre('[', 'x', ']'));
  EXPECT_EQ(tokenizer->Decode({258, 300, 301}, /*skip_special=*/true), "abc[x]");
}

TEST_F(TokenizerFileTest, ReadsMergesWrittenAsPairs) {
  json root = SmallTokenizer();
  root["model"]["merges"] = json::parse(R"([["b", "c"], ["a", "b"], ["a", "bc"]])");
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Tokenizer> tokenizer, Load(root));
  ASSERT_OK_AND_ASSIGN(const std::vector<uint32_t> ids, tokenizer->Encode("abc"));
  EXPECT_THAT(ids, ElementsAre(258));
}

TEST_F(TokenizerFileTest, TheVocabularyLoadsAlone) {
  json root = SmallTokenizer();
  root["pre_tokenizer"] = nullptr;  // does not matter to who only reads ids
  root["model"].erase("merges");
  Write(root.dump());
  ASSERT_OK_AND_ASSIGN(const Vocabulary vocabulary, LoadVocabulary(path()));
  EXPECT_EQ(vocabulary.Bytes(258), "abc");
  EXPECT_EQ(vocabulary.IdOfAdded("<|end|>"), 300u);
}

TEST_F(TokenizerFileTest, NamesWhatIsNotAsInQwen3) {
  struct Case {
    const char* pointer;
    json value;
  };
  const Case cases[] = {
      {"/model/type", "WordPiece"},
      {"/model/dropout", 0.1},
      {"/model/unk_token", "<unk>"},
      {"/model/continuing_subword_prefix", "##"},
      {"/model/end_of_word_suffix", "</w>"},
      {"/model/byte_fallback", true},
      {"/model/ignore_merges", true},
      {"/normalizer/type", "NFKC"},
      {"/pre_tokenizer/type", "ByteLevel"},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\\p{N}{1,3}"},
      {"/pre_tokenizer/pretokenizers/0/behavior", "Removed"},
      {"/pre_tokenizer/pretokenizers/1/add_prefix_space", true},
      {"/pre_tokenizer/pretokenizers/1/use_regex", true},
      {"/decoder/type", "Metaspace"},
      {"/post_processor", {{"type", "TemplateProcessing"}}},
      {"/added_tokens/1/lstrip", true},
      {"/added_tokens/0/normalized", true},
  };
  for (const Case& c : cases) {
    json root = SmallTokenizer();
    root[json::json_pointer(c.pointer)] = c.value;
    EXPECT_THAT(Load(root), StatusIs(absl::StatusCode::kFailedPrecondition,
                                     AllOf(HasSubstr(c.pointer), HasSubstr("want"))))
        << c.pointer;
  }
  json root = SmallTokenizer();
  root["pre_tokenizer"]["pretokenizers"].push_back({{"type", "Digits"}});
  EXPECT_THAT(Load(root), StatusIs(absl::StatusCode::kFailedPrecondition));
  root = SmallTokenizer();
  root["normalizer"] = nullptr;
  EXPECT_THAT(Load(root), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(TokenizerFileTest, NamesWhatIsBroken) {
  struct Case {
    const char* pointer;
    json value;
    const char* message;
  };
  const Case cases[] = {
      {"/model/vocab", 5, "/model/vocab 5"},
      {"/model/vocab/ab", -1, "/model/vocab/ab -1"},
      {"/model/vocab/ab", 1 << 20, "1048576"},
      {"/model/vocab/ab", 256, "two tokens have id 256"},
      {"/model/vocab/a b", 259, "\"a b\""},
      {"/model/merges", "b c", "/model/merges"},
      {"/model/merges/1", "ab", "/model/merges/1"},
      {"/model/merges/1", "a b c", "/model/merges/1"},
      {"/model/merges/1", {"a", "b", "c"}, "/model/merges/1"},
      {"/model/merges/1", "b a", "make one of it"},
      {"/added_tokens", 5, "/added_tokens 5"},
      {"/added_tokens/0/id", "x", "/added_tokens/0"},
      {"/added_tokens/0/content", "", "is empty"},
      {"/added_tokens/0/id", 257, "two tokens have id 257"},
  };
  for (const Case& c : cases) {
    json root = SmallTokenizer();
    root[json::json_pointer(c.pointer)] = c.value;
    EXPECT_THAT(Load(root), StatusIs(absl::StatusCode::kDataLoss,
                                     AllOf(HasSubstr(path()), HasSubstr(c.message))))
        << c.pointer << " " << c.value;
  }
  json root = SmallTokenizer();
  root["model"]["vocab"].erase("b");
  root["model"]["merges"] = json::array();
  EXPECT_THAT(Load(root), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("byte 98")));
}

TEST_F(TokenizerFileTest, RefusesWhatIsNoJson) {
  const std::string whole = SmallTokenizer().dump();
  for (size_t size = 0; size < whole.size(); size += 97) {  // cut short anywhere
    Write(whole.substr(0, size));
    EXPECT_THAT(Tokenizer::Load(dir_.path()),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr(path())));
  }
  Write("{\"model\": \"\xFF\"}");
  EXPECT_THAT(LoadVocabulary(path()), StatusIs(absl::StatusCode::kDataLoss));
  Write("[]");  // JSON, and nothing of what is wanted
  EXPECT_THAT(LoadVocabulary(path()), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(TokenizerFileTest, NeedsTheFile) {
  EXPECT_THAT(Tokenizer::Load(dir_.path()),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr(path())));
  std::filesystem::create_directory(dir_.File("tokenizer.json"));  // a folder
  EXPECT_THAT(Tokenizer::Load(dir_.path()), StatusIs(absl::StatusCode::kDataLoss));
}

}  // namespace
}  // namespace conclave
