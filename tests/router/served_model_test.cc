#include "router/served_model.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "tests/router/test_model.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace conclave {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A copy of the test model without its weights, for a test to break.
class ServedModelTest : public testing::Test {
 protected:
  ServedModelTest() {
    std::filesystem::create_directory(dir_);
    for (const char* name :
         {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}) {
      std::filesystem::copy(TestModelDir() + "/" + name, dir_ + "/" + name);
    }
  }

  void Write(const std::string& name, const std::string& text) {
    std::ofstream(dir_ + "/" + name) << text;
  }
  absl::StatusOr<std::unique_ptr<ServedModel>> Load(const std::string& chat_template = "auto") {
    ServedModelOptions options;
    options.model_dir = dir_ + "/";
    options.chat_template = chat_template;
    return LoadServedModel(options);
  }
  const TempDir parent_;
  const std::string dir_ = parent_.File("served model");
};

TEST_F(ServedModelTest, ReadsWhatItNeeds) {
  ASSERT_OK_AND_ASSIGN(const auto model, Load());
  EXPECT_EQ(model->name, "served model");
  EXPECT_EQ(model->template_kind, TemplateKind::kQwen3);
  EXPECT_THAT(model->end_ids, ElementsAre(AddedId("<|endoftext|>"), AddedId("<|im_end|>")));
  EXPECT_TRUE(model->markup.can_think());
  EXPECT_EQ(model->Info().hidden_size(), 64u);
  EXPECT_EQ(model->Info().max_context(), static_cast<uint32_t>(kTestContext));
}

TEST_F(ServedModelTest, EndIdsHaveADefault) {
  std::filesystem::remove(dir_ + "/generation_config.json");
  ASSERT_OK_AND_ASSIGN(const auto model, Load());
  EXPECT_FALSE(model->end_ids.empty());
}

TEST_F(ServedModelTest, SaysWhatIsWrong) {
  EXPECT_THAT(Load("llama").status(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("llama")));
  Write("generation_config.json", "{\"eos_token_id\": 400}");
  EXPECT_THAT(Load().status(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("eos_token_id is 400")));
  Write("generation_config.json", "{");
  EXPECT_FALSE(Load().ok());
}

TEST_F(ServedModelTest, AnUnknownTemplateNeedsTheFlag) {
  Write("tokenizer_config.json", "{\"chat_template\": \"{{ messages }}\"}");
  EXPECT_THAT(Load().status(), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_OK(Load("qwen3").status());
}

TEST_F(ServedModelTest, BrokenFilesAreErrors) {
  Write("tokenizer.json", "{\"model\": 1}");
  EXPECT_FALSE(Load().ok());
  std::filesystem::remove(dir_ + "/tokenizer.json");
  EXPECT_THAT(Load().status(), StatusIs(absl::StatusCode::kNotFound));
  std::filesystem::remove(dir_ + "/config.json");
  EXPECT_THAT(Load().status(), StatusIs(absl::StatusCode::kNotFound));
}

}  // namespace
}  // namespace conclave
