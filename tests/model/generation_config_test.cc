#include "model/generation_config.h"

#include "tests/model/model_files.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

TEST(GenerationConfigTest, ReadsEveryField) {
  ASSERT_OK_AND_ASSIGN(const GenerationConfig config, ParseGenerationConfig(R"({
      "bos_token_id": 151643, "do_sample": true, "eos_token_id": [151645, 151643],
      "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0, "repetition_penalty": 1.05,
      "transformers_version": "4.51.0"})"));
  GenerationConfig expected;
  expected.do_sample = true;
  expected.temperature = 0.6;
  expected.top_p = 0.95;
  expected.top_k = 20;
  expected.min_p = 0;
  expected.repetition_penalty = 1.05;
  expected.eos_token_ids = {151645, 151643};
  EXPECT_EQ(config, expected);
}

TEST(GenerationConfigTest, AbsentFieldsStayEmpty) {
  ASSERT_OK_AND_ASSIGN(const GenerationConfig config,
                       ParseGenerationConfig(R"({"eos_token_id": 151645, "top_p": null})"));
  EXPECT_FALSE(config.do_sample.has_value());
  EXPECT_FALSE(config.top_p.has_value());
  EXPECT_EQ(config.eos_token_ids, std::vector<int32_t>{151645});
}

TEST(GenerationConfigTest, RefusesValuesNoSamplerTakes) {
  for (const char* field : {R"("temperature": -0.1)", R"("top_p": 0)", R"("top_p": 1.5)",
                            R"("top_k": -1)", R"("min_p": 2)", R"("repetition_penalty": 0)",
                            R"("eos_token_id": -1)", R"("do_sample": "yes")"}) {
    const std::string name = std::string(field).substr(1, std::string(field).find(':') - 2);
    EXPECT_THAT(ParseGenerationConfig("{" + std::string(field) + "}"),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr(name + " is ")));
  }
  EXPECT_THAT(ParseGenerationConfig("[]"), StatusIs(StatusCode::kInvalidArgument));
}

TEST(GenerationConfigTest, MissingFileIsEmptyABadOneIsNot) {
  TempDir dir;
  ASSERT_OK_AND_ASSIGN(const GenerationConfig missing, LoadGenerationConfig(dir.path()));
  EXPECT_EQ(missing, GenerationConfig{});
  dir.Write("generation_config.json", "{\"top_k\": 1}");
  ASSERT_OK_AND_ASSIGN(const GenerationConfig found, LoadGenerationConfig(dir.path()));
  EXPECT_EQ(found.top_k, 1);
  dir.Write("generation_config.json", "{\"top_k\": ");
  EXPECT_THAT(LoadGenerationConfig(dir.path()),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("generation_config.json")));
}

}  // namespace
}  // namespace conclave
