#include "client/synth_command.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "model/qwen3_config.h"
#include "model/safetensors.h"
#include "model/synthetic.h"
#include "model/synthetic_tokenizer.h"
#include "model/weight_catalog.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace conclave {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

class SynthCommandTest : public testing::Test {
 protected:
  absl::Status Run(const std::string& config_name, int num_layers) {
    return RunSynth({config_name, num_layers, out_dir(), /*seed=*/3},
                    [this](int64_t done, int64_t total) {
                      done_ = done;
                      total_ = total;
                    });
  }
  std::string out_dir() const { return dir_.File("out"); }

  const TempDir dir_;
  int64_t done_ = -1, total_ = -2;
};

TEST_F(SynthCommandTest, WritesACutModelAndReportsProgress) {
  ASSERT_OK(Run("tiny-moe", 1));
  EXPECT_EQ(done_, total_);
  ASSERT_OK_AND_ASSIGN(const Qwen3Config config, LoadQwen3Config(out_dir()));
  EXPECT_EQ(config.num_hidden_layers, 1);
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(out_dir()));
  EXPECT_OK(CheckCatalog(*checkpoint, config));
  EXPECT_THAT(Run("tiny-moe", 1), StatusIs(StatusCode::kAlreadyExists));
}

TEST_F(SynthCommandTest, ZeroLayersAreAll) {
  ASSERT_OK(Run("tiny-dense", 0));
  EXPECT_EQ(LoadQwen3Config(out_dir())->num_hidden_layers, 2);
}

TEST_F(SynthCommandTest, TakesTheShapeOfAConfigFile) {
  Qwen3Config shape = TinyMoeConfig();
  shape.num_experts = 6;
  const std::string file = dir_.File("shape.json");
  std::ofstream(file) << FormatQwen3Config(shape);
  ASSERT_OK(Run(file, 0));
  EXPECT_EQ(LoadQwen3Config(out_dir())->num_experts, 6);
  std::ofstream(file) << "{}";
  EXPECT_THAT(Run(file, 0), StatusIs(StatusCode::kInvalidArgument));
}

TEST_F(SynthCommandTest, RefusesWhatItCannotWrite) {
  EXPECT_THAT(Run("qwen9", 1), StatusIs(StatusCode::kNotFound, HasSubstr("qwen3-0.6b")));
  EXPECT_THAT(Run("tiny-moe", 3),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("--layers is 3")));
  EXPECT_THAT(Run("tiny-moe", -1), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(RunSynth({"tiny-moe", 1, "", 1}, [](int64_t, int64_t) {}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("--out")));
  EXPECT_FALSE(std::filesystem::exists(out_dir()));
}

// What a router does with the model: load the tokenizer, recognise the template, go there and back.
void ExpectServesText(const std::string& model_dir, uint32_t im_start_id) {
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, Tokenizer::Load(model_dir));
  ASSERT_OK_AND_ASSIGN(const TemplateKind kind, DetectTemplate(model_dir));
  EXPECT_EQ(kind, TemplateKind::kQwen3);
  ChatPrompt prompt;
  ChatMessage message;
  message.role = "user";
  message.content = "Isn't the 2nd café open?";
  prompt.messages.push_back(message);
  ASSERT_OK_AND_ASSIGN(const std::string text, RenderChat(kind, prompt));
  ASSERT_OK_AND_ASSIGN(const std::vector<uint32_t> ids, tokenizer->Encode(text));
  EXPECT_EQ(ids.front(), im_start_id);
  EXPECT_LT(ids.size(), text.size());
  EXPECT_EQ(tokenizer->Decode(ids, /*skip_special=*/false), text);
}

TEST_F(SynthCommandTest, TinyTokenizerServesText) {
  ASSERT_OK(Run("tiny-moe", 0));
  ExpectServesText(out_dir(), 257);
}

// Of the whole vocabulary without the gigabytes of an embedding that go with it.
TEST_F(SynthCommandTest, RealSizedTokenizerServesText) {
  ASSERT_OK_AND_ASSIGN(const SyntheticTokenizer tokenizer, MakeSyntheticTokenizer(151936));
  dir_.Write("tokenizer.json", tokenizer.tokenizer_json);
  dir_.Write("tokenizer_config.json", tokenizer.tokenizer_config_json);
  ExpectServesText(dir_.path(), 151644);
}

}  // namespace
}  // namespace conclave
