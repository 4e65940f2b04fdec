#include "model/synthetic_tokenizer.h"

#include <map>
#include <set>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using absl::StatusCode;
using nlohmann::json;

json TokenizerOf(int vocab_size) {
  const auto tokenizer = MakeSyntheticTokenizer(vocab_size);
  EXPECT_OK(tokenizer);
  return json::parse(tokenizer->tokenizer_json);
}

// GPT-2's alphabet: 188 printable bytes first, then the other 68 from U+0100 on.
TEST(SyntheticTokenizerTest, BytesComeFirstInGpt2Order) {
  const json vocab = TokenizerOf(320)["model"]["vocab"];
  EXPECT_EQ(vocab.size(), 256u);
  EXPECT_EQ(vocab["!"], 0);         // 0x21
  EXPECT_EQ(vocab["~"], 93);        // 0x7e
  EXPECT_EQ(vocab["\u00a1"], 94);   // 0xa1
  EXPECT_EQ(vocab["\u00ae"], 106);  // 0xae: 0xad is not printable
  EXPECT_EQ(vocab["\u00ff"], 187);  // 0xff
  EXPECT_EQ(vocab["\u0100"], 188);  // 0x00
  EXPECT_EQ(vocab["\u0120"], 220);  // 0x20, the space
  EXPECT_EQ(vocab["\u0143"], 255);  // 0xad
}

TEST(SyntheticTokenizerTest, SmallVocabularyHasTheAddedTokensAfterTheBytes) {
  const json tokenizer = TokenizerOf(320);
  EXPECT_TRUE(tokenizer["model"]["merges"].empty());
  const json& added = tokenizer["added_tokens"];
  ASSERT_EQ(added.size(), 26u);
  for (int i = 0; i < 26; ++i) EXPECT_EQ(added[i]["id"], 256 + i);
  EXPECT_EQ(added[1]["content"], "<|im_start|>");
  EXPECT_EQ(added[1]["special"], true);
  EXPECT_EQ(added[25]["content"], "</think>");
  EXPECT_EQ(added[25]["special"], false);
  EXPECT_EQ(MakeSyntheticTokenizer(282)->im_end_id, 258);
}

TEST(SyntheticTokenizerTest, RealVocabularyHasTheRealIds) {
  const json tokenizer = TokenizerOf(151936);
  const json& vocab = tokenizer["model"]["vocab"];
  const json& merges = tokenizer["model"]["merges"];
  ASSERT_EQ(vocab.size(), 151643u);
  ASSERT_EQ(merges.size(), 151643u - 256);
  std::set<int> ids;
  std::map<std::string, int> id_of;
  for (const auto& [token, id] : vocab.items()) {
    ids.insert(id.get<int>());
    id_of[token] = id.get<int>();
  }
  EXPECT_EQ(ids.size(), 151643u);
  EXPECT_EQ(*ids.rbegin(), 151642);
  // As in the real one: merge r makes token 256 + r out of two earlier tokens.
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const std::string left = merges[rank][0], right = merges[rank][1];
    const int made = 256 + static_cast<int>(rank);
    ASSERT_EQ(id_of.at(left + right), made);
    ASSERT_LT(id_of.at(left), made);
    ASSERT_LT(id_of.at(right), made);
  }
  const json& added = tokenizer["added_tokens"];
  EXPECT_EQ(added[0]["id"], 151643);
  EXPECT_EQ(added[24]["content"], "<think>");
  EXPECT_EQ(added[24]["id"], 151667);
  EXPECT_EQ(MakeSyntheticTokenizer(151936)->im_end_id, 151645);
}

TEST(SyntheticTokenizerTest, ConfigCarriesTheChatTemplate) {
  const auto tokenizer = MakeSyntheticTokenizer(320);
  const json config = json::parse(tokenizer->tokenizer_config_json);
  const std::string chat_template = config["chat_template"];
  EXPECT_EQ(chat_template.size(), 4116u);
  EXPECT_NE(chat_template.find("enable_thinking is false"), std::string::npos);
  EXPECT_EQ(config["eos_token"], "<|im_end|>");
  EXPECT_EQ(config["added_tokens_decoder"]["281"]["content"], "</think>");
}

TEST(SyntheticTokenizerTest, RefusesAVocabularyWithoutRoom) {
  EXPECT_THAT(MakeSyntheticTokenizer(281), StatusIs(StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace conclave
